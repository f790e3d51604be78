"""``signllm demo``: everybody's first five minutes."""

from pathlib import Path

from signllm.command import Job, Verb, prepare_job, print_result


def _demo(arguments: list[str]) -> Job:
    def demo(
        *,
        out: Path = Path("demo-out"),
        level: str = "easy",
        seed: int = 0,
        ranks: int = 2,
        json: bool = False,
    ) -> None:
        """Demo.

        Args:
            out: everything goes here: videos, shards, runs, report.html, summary.json; unfinished, it is
                continued.
            level: easy or hard: units, signers, how much signs run into each other.
            seed: of sentences, signers and takes; training itself always begins alike.
            ranks: processes that train together on this machine.
            json: print the summary as JSON.
        """
        import dataclasses

        from signllm.demo.demonstration import Demo, DemoConfig
        from signllm.demo.studio import StudioConfig
        from signllm.recipes import find_recipe

        config = dataclasses.replace(DemoConfig(), studio=StudioConfig(level=level, seed=seed))
        summary = Demo(out, config, find_recipe("demo"), ranks=ranks).run()
        if json:
            print_result(summary, json=True)
        else:
            print(table(summary, out))

    return prepare_job(demo, arguments, verb="demo", about=DEMO)


def table(summary: dict, out: Path) -> str:
    """Return the summary as the table that the demo ends with."""
    rows = {
        "this model, from video": summary,
        "oracle: true signs instead of video": summary["oracle"],
        "shuffled: another video's translation": summary["shuffled"],
        "untrained encoder": summary["untrained"],
    }
    scores_shown = f"{'BLEU-1':>8}{'BLEU-4':>8}{'ROUGE-L':>9}{'content words':>15}"
    lines = [f"{'unseen sentences of an unseen signer':<40}{scores_shown}"]
    for name, scores in rows.items():
        numbers = f"{scores['bleu1']:>8.1f}{scores['bleu4']:>8.1f}{scores['rouge_l']:>9.1f}"
        lines.append(f"{name:<40}{numbers}{100 * scores['content_word_accuracy']:>13.1f} %")
    stages = ", ".join(f"{name} {seconds:.0f}" for name, seconds in summary["stages"].items())
    lines += [
        "",
        f"The demo took {summary['seconds']:.0f} seconds: {stages}.",
        f"{out / 'report.html'} shows the curves, every translation, and which frames became which words.",
    ]
    return "\n".join(lines)


DEMO = Verb(
    "the whole path on a generated sign language: minutes on two cores", "signllm demo --out demo-out", _demo
)
