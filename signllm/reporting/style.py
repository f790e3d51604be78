"""The style sheet of the pages: light and dark mode, phone and print, colours that differ in grey.

It is part of the page. The security policy of the page allows inline styles and ``data:`` pictures only, so
that no script could run even if the content contained one, and nothing is loaded from the network.
"""

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

STYLE = """
:root{color-scheme:light dark;--page:#f6f6f3;--card:#fff;--ink:#1c1e21;--soft:#5d646c;--rule:#e2e2dc;
--s0:#1f6fc4;--s1:#c2570c;--s2:#2c8a4b;--bad:#b3261e;--missed:#1f5fae;--mark:#7a3fb0;--bar:#1f6fc4;--barless:#a9b4bf}
@media(prefers-color-scheme:dark){:root{--page:#131417;--card:#1c1e22;--ink:#e9e9e6;--soft:#a2a8b0;--rule:#33363c;
--s0:#6db0f5;--s1:#f0a05a;--s2:#74c98e;--bad:#ff9a90;--missed:#8fc0ff;--mark:#c9a0f0;--bar:#6db0f5;--barless:#5b636d}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"DejaVu Sans",sans-serif;font-variant-numeric:tabular-nums}
main,header,footer{max-width:1120px;margin:0 auto;padding:0 20px}
header{padding-top:36px}
h1{font-size:30px;line-height:1.15;margin:0 0 6px;letter-spacing:-.01em}
h2{font-size:20px;margin:0 0 4px}
h3{font-size:16px;margin:22px 0 8px}
p{margin:0 0 12px;max-width:76ch}
.lead{max-width:none}
.lead,.hint,small,footer{color:var(--soft)}
.hint{font-size:14px}
section{background:var(--card);border:1px solid var(--rule);border-radius:12px;
padding:22px 24px;margin:20px 0}
nav{display:flex;flex-wrap:wrap;gap:4px 18px;margin-top:12px;font-size:14px}
a{color:var(--s0)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:22px 0}
.tile{background:var(--card);border:1px solid var(--rule);border-radius:12px;padding:12px 16px}
.tile b{display:block;font-size:23px;white-space:nowrap;line-height:1.2;font-weight:650;letter-spacing:-.01em}
.tile span{color:var(--soft);font-size:13.5px}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(300px,100%),1fr));gap:18px 22px}
figure{margin:0;min-width:0;display:flex;flex-direction:column;justify-content:space-between}
figcaption{font-size:14px;line-height:1.35;margin-bottom:4px}
figcaption small{display:block;font-size:12.5px}
.key{display:inline-block;margin-left:12px;font-size:12.5px;color:var(--soft)}
.key svg{width:22px;height:8px;margin-right:5px;display:inline-block}
svg{display:block;width:100%;height:auto;overflow:visible}
svg text{font-size:11px;fill:var(--soft);font-family:inherit}
svg .label{font-size:11px}
svg .grid{stroke:var(--rule)}
svg .axis{stroke:var(--soft);stroke-width:1}
svg .line{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
svg .faint{stroke-width:1;opacity:.28}
svg .s0{stroke:var(--s0)}
svg .s1{stroke:var(--s1);stroke-dasharray:6 4}
svg .s2{stroke:var(--s2);stroke-dasharray:2 4}
svg .dot{fill:var(--card);stroke-width:1.6;stroke-dasharray:none}
svg .mark{stroke:var(--mark);stroke-width:1.5;stroke-dasharray:3 3}
svg .marked{fill:var(--mark);font-weight:600;paint-order:stroke;stroke:var(--card);stroke-width:5px}
.scroll{overflow-x:auto;margin:0 -4px;padding:0 4px}
table{border-collapse:collapse;width:100%;font-size:14.5px}
th,td{text-align:right;padding:7px 10px;border-bottom:1px solid var(--rule);vertical-align:top;
white-space:nowrap}
th{color:var(--soft);font-weight:600;font-size:13px}
th:first-child,td:first-child{text-align:left;white-space:normal;min-width:130px}
table.pairs td:first-child{min-width:90px}
tbody tr:last-child>*{border-bottom:0}
tr.ours td{font-weight:650}
.bar{display:inline-block;vertical-align:middle;height:12px;border-radius:3px;background:var(--barless);
margin-right:10px;print-color-adjust:exact}
tr.ours .bar{background:var(--bar)}
td.barred,th.barred{text-align:left;width:44%;min-width:200px}
td small{display:block;font-weight:400}
.sample{border-top:1px solid var(--rule);padding:18px 0 10px}
.sample:first-of-type{border-top:0;padding-top:8px}
.sample h3{margin:0 0 8px;font-size:13.5px;font-weight:600;color:var(--soft);overflow-wrap:anywhere}
dl.pair{display:grid;grid-template-columns:84px 1fr;gap:3px 12px;margin:10px 0 0}
dl.pair dt{color:var(--soft);font-size:13.5px;padding-top:2px}
dl.pair dd{margin:0;overflow-wrap:anywhere}
del{color:var(--bad);text-decoration:line-through;text-decoration-thickness:1.5px}
ins{color:var(--missed);text-decoration:underline;text-decoration-thickness:2px;text-underline-offset:3px}
.timeline{overflow-x:auto}
.timeline svg{min-width:760px}
.timeline text{font-size:12px}
.timeline text.code{fill:#16181b;font-size:11.5px;font-weight:600}
.timeline .bracket{fill:none;stroke:var(--ink);stroke-width:1.6}
.timeline .single,.timeline .tick{fill:none;stroke:var(--soft);stroke-width:1}
.timeline text.word{fill:var(--ink);font-size:11.5px;font-weight:600}
.code{display:inline-block;border-radius:4px;color:#16181b;font-size:12px;font-weight:600;
padding:1px 6px;margin:0 2px}
table.pairs td{white-space:normal;text-align:left;width:42%;overflow-wrap:anywhere}
table.pairs td:first-child{width:20%;color:var(--soft);font-size:13px}
table.pairs th{text-align:left}
ul.gallery{list-style:none;padding:0;display:flex;flex-wrap:wrap;gap:8px 18px;font-size:14px}
ul.gallery li.pictured{width:min(100%,318px)}
ul.gallery img{display:block;width:100%;height:auto;margin-bottom:3px}
table.conditions th,table.conditions td{text-align:left;white-space:normal;font-weight:400;vertical-align:top}
table.conditions th{width:170px}
table.named th,table.named td{white-space:nowrap;padding:4px 10px}table.named th:first-child{text-align:left}
main .hint{overflow-wrap:anywhere}
.slow{color:var(--soft);font-weight:600;margin:0 3px}
details{margin-top:12px}
summary{cursor:pointer;color:var(--soft)}
pre,code{font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
code{overflow-wrap:anywhere}
pre{overflow-x:auto;margin:10px 0 0}
table.settings td{text-align:left;white-space:normal;overflow-wrap:anywhere;padding:3px 10px}
footer{padding-bottom:40px;font-size:13.5px}
@media(max-width:560px){section{padding:16px 14px}main,header,footer{padding-left:12px;padding-right:12px}
dl.pair{grid-template-columns:1fr;gap:0}dl.pair dd{margin-bottom:6px}}
@media print{body{background:#fff}section,.tile,.sample,figure{break-inside:avoid}nav{display:none}}
"""
