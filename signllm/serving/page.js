// The page sends a video to POST /translate, receives lines of JSON, and draws each piece when its line arrives.
"use strict";

const at = (id) => document.getElementById(id);
const PIXELS_PER_S = 110; // so that a word of four frames is wide enough for its number
const FRAME_HEIGHT = 72;
const state = { video: null, name: "", stream: null, recorder: null, request: null, limit: Infinity };

async function start() {
  const about = await (await fetch("about")).json();
  at("name").textContent = about.name;
  at("language").placeholder = about.language;
  at("candidates").max = about.most_candidates;
  state.limit = about.largest_mb * 1e6;
  for (const language of about.languages) at("languages").append(new Option(language, language));
}

function say(text, bad = false) {
  at("status").textContent = text;
  at("status").classList.toggle("bad", bad);
}

function showError(error) {
  say([error.what, error.remedy && `Try: ${error.remedy}`].filter(Boolean).join("\n"), true);
}

// The video ---------------------------------------------------------------------------------------------------

function useVideo(blob, name) {
  if (!blob) return;
  release();
  state.video = blob;
  state.name = name;
  const video = at("video");
  video.srcObject = null;
  video.src = URL.createObjectURL(blob);
  video.controls = true;
  video.hidden = false;
  video.onerror = () => { video.hidden = true; };
  translate();
}

function release() {
  const video = at("video");
  if (video.src) URL.revokeObjectURL(video.src);
  for (const track of state.stream?.getTracks() ?? []) track.stop();
  state.stream = null;
  at("recording").hidden = true;
  at("camera").disabled = false;
}

async function record() {
  try {
    state.stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "user" }, audio: false });
  } catch (error) {
    return say(`The camera cannot be used: ${error.message}`, true);
  }
  const video = at("video");
  const parts = [];
  const recorder = new MediaRecorder(state.stream);
  const begun = performance.now();
  const timer = setInterval(() => { at("seconds").textContent = `${Math.round((performance.now() - begun) / 1000)} s`; }, 250);
  video.removeAttribute("src");
  video.srcObject = state.stream;
  video.controls = false;
  video.hidden = false;
  video.play().catch(() => {});  // playback was cancelled before it started
  at("recording").hidden = false;
  at("camera").disabled = true;
  say("Recording.");
  recorder.ondataavailable = (event) => parts.push(event.data);
  recorder.onstop = () => {
    clearInterval(timer);
    const isKept = state.recorder === recorder;
    state.recorder = null;
    release();
    if (isKept) return useVideo(new Blob(parts, { type: recorder.mimeType }), "the camera's video");
    video.srcObject = null;
    video.hidden = true;
    say("");
  };
  state.recorder = recorder;
  recorder.start();
  at("stop").focus();
}

// The translation ---------------------------------------------------------------------------------------------

async function translate() {
  if (state.video.size > state.limit) return say(`The video is larger than ${state.limit / 1e6} MB.`, true);
  state.request?.abort();
  const request = (state.request = new AbortController());
  at("pieces").replaceChildren();
  at("again").hidden = false;
  say("Translating …");
  const cut = at("cut").value;
  const query = new URLSearchParams({ candidates: at("candidates").value || 1, cut });
  if (cut === "windows") query.set("seconds", at("window-seconds").value);
  if (at("language").value.trim()) query.set("language", at("language").value.trim());
  try {
    const headers = { "X-Name": encodeURIComponent(state.name), "Content-Type": "application/octet-stream" };
    const answer = await fetch(`translate?${query}`, { method: "POST", body: state.video, headers, signal: request.signal });
    const drawn = [];
    for await (const line of lines(answer)) {
      if (line.error) return showError(line.error);
      if (line.waiting) say(`Waiting: ${line.waiting} before this one.`);
      else if (line.text !== undefined) { say("Translating …"); drawn.push(draw(line, cut !== "whole")); }
      else if (line.done) say(drawn.length === 1 ? "Done." : `Done: ${drawn.length} pieces.`);
    }
    for (const piece of drawn) await piece.film();
  } catch (error) {
    if (error.name !== "AbortError") say("The server cannot be reached: is `signllm serve` still running?", true);
  }
}

async function* lines(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    const parts = (rest + (value ?? "")).split("\n");
    rest = done ? "" : parts.pop();
    for (const part of parts) if (part.trim()) yield JSON.parse(part);
    if (done) return;
  }
}

// A piece -----------------------------------------------------------------------------------------------------

function draw(result, isCut) {
  const piece = at("piece").content.cloneNode(true).firstElementChild;
  const part = (name) => piece.querySelector(name);
  const duration = Math.max(result.end_s - result.start_s, 0.04);
  at("pieces").append(piece);
  const width = Math.max(part(".strip").clientWidth, Math.round(duration * PIXELS_PER_S));
  const place = (seconds) => ((seconds - result.start_s) / duration) * width;
  part(".times").textContent = isCut ? `${result.start_s.toFixed(1)} s to ${result.end_s.toFixed(1)} s` : "";
  part(".times").hidden = !isCut;
  part(".text").textContent = result.text || "(nothing)";
  part(".track").style.width = `${width}px`;
  part(".words").append(...result.words.map((word, number) => box(result, number, place)));
  for (let second = Math.ceil(result.start_s); second < result.end_s; second++) {
    const mark = document.createElement("span");
    mark.textContent = `${second} s`;
    mark.style.left = `${place(second)}px`;
    part(".axis").append(mark);
  }
  part(".about").textContent = `${result.words.length} sign words from ${result.characters.length} characters in `
    + `${result.seconds.toFixed(1)} s; mean log probability of a token ${result.score.toFixed(2)}.`
    + (result.frames_read < result.frames ? ` Only ${result.frames_read} of ${result.frames} frames were read, evenly spread, because `
      + "the model was trained on shorter videos. If this is more than a sentence, cut the recording." : "");
  for (const candidate of result.candidates) {
    const line = document.createElement("li");
    const score = document.createElement("span");
    line.textContent = candidate.text;
    score.textContent = candidate.score.toFixed(2);
    score.className = "soft";
    line.append(score);
    part(".others ol").append(line);
  }
  part(".others").hidden = result.candidates.length < 2;
  part(".others").open = true;
  return { film: () => film(part(".frames"), result, width) };
}

function box(result, number, place) {
  const [begin, end] = result.word_times[number];
  const spelling = result.spellings[number];
  const line = document.createElement("li");
  const button = document.createElement("button");
  const characters = document.createElement("small");
  button.type = "button";
  button.textContent = `w${result.words[number]}`;
  characters.textContent = spelling.join(" ");
  button.append(characters);
  button.classList.toggle("composed", spelling.length > 1);
  button.style.left = `${place(begin)}px`;
  button.style.width = `${Math.max(8, place(end) - place(begin) - 1)}px`;
  button.setAttribute("aria-label", `word ${result.words[number]}, characters ${spelling.join(" ")}, `
    + `${begin.toFixed(2)} to ${end.toFixed(2)} seconds: show it in the video`);
  button.onclick = () => { at("video").currentTime = begin; at("video").pause(); };
  line.append(button);
  return line;
}

// Draw frames of the video above its words, unless this browser cannot play the video.
async function film(frames, result, width) {
  const source = document.createElement("video");
  source.muted = true;
  source.src = URL.createObjectURL(state.video);
  try {
    await event(source, "loadeddata");
    const frame = (FRAME_HEIGHT * source.videoWidth) / source.videoHeight;
    const count = Math.max(1, Math.ceil(width / frame));
    for (let number = 0; number < count; number++) {
      source.currentTime = result.start_s + ((result.end_s - result.start_s) * (number + 0.5)) / count;
      await event(source, "seeked");
      const canvas = document.createElement("canvas");
      canvas.width = Math.ceil(frame * devicePixelRatio);
      canvas.height = FRAME_HEIGHT * devicePixelRatio;
      canvas.getContext("2d").drawImage(source, 0, 0, canvas.width, canvas.height);
      canvas.style.left = `${(number * width) / count}px`;
      canvas.style.width = `${Math.ceil(width / count)}px`;
      canvas.style.objectFit = "cover";
      frames.append(canvas);
    }
  } catch {
    frames.textContent = "This browser cannot show the frames of this video.";
  } finally {
    URL.revokeObjectURL(source.src);
  }
}

function event(target, name) {
  return new Promise((resolve, reject) => {
    target.addEventListener(name, resolve, { once: true });
    target.addEventListener("error", reject, { once: true });
    setTimeout(reject, 5000);
  });
}

// Events of the user ------------------------------------------------------------------------------------------

at("file").onchange = (event) => useVideo(event.target.files[0], event.target.files[0]?.name);
at("file").onclick = (event) => { event.target.value = ""; };
at("camera").onclick = record;
at("stop").onclick = () => state.recorder?.stop();
at("cancel").onclick = () => { const recorder = state.recorder; state.recorder = null; recorder?.stop(); };
at("again").onclick = translate;
at("cut").onchange = () => { at("window").hidden = at("cut").value !== "windows"; };
for (const name of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    at("drop").classList.toggle("over", name === "dragover");
    if (name === "drop") useVideo(event.dataTransfer.files[0], event.dataTransfer.files[0]?.name);
  });
}
start().catch(() => say("The server cannot be reached.", true));
