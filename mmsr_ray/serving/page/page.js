// Ask, watch, compare, keep. What a model or the web wrote is only ever set as text; links are http(s) only, pictures data URLs only.
// A run is what was asked and the events of each column; the same code shows a run that is going on and one that was kept.

const WORKFLOWS = { on_demand: "Searches when it wants to", direct: "Never searches", rag: "Always searches" };
const MODES = { on_demand: ["on_demand"], compare: ["on_demand", "direct", "rag"] };
const KEPT_RUNS = 20;
const MOST_SIDE = 2048, MOST_BYTES = 3_000_000; // a larger picture is scaled down before it is sent
const SMALL_SIDE = 160; // of the picture in the list of earlier runs
const SILENCE_MS = 180_000; // a stream that says nothing for so long is given up
const AS_IT_IS = ["image/png", "image/jpeg", "image/webp"];
const PICTURE_URL = /^data:image\/(png|jpeg|webp|gif);base64,[A-Za-z0-9+/=]+$/;

const $ = (id) => document.getElementById(id);

/** An element with properties and children; a string is a text node. */
function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function say(words) {
  $("status").textContent = words;
}

// ------------------------------------------------------------------------------------------------ pictures

let picture = null; // data URL of the picture to ask about
let taking = Promise.resolve(); // done when the picture chosen last is ready

/** A file as a data URL that is worth sending: as it is where it is small, else scaled down. Throws what to tell the user. */
async function prepared(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error("This file is no picture that this browser can read. Try a PNG, JPEG or WebP.");
  }
  const scale = Math.min(1, MOST_SIDE / Math.max(bitmap.width, bitmap.height));
  if (scale === 1 && file.size <= MOST_BYTES && AS_IT_IS.includes(file.type)) return await dataUrl(file);
  return drawn(bitmap, scale);
}

function drawn(image, scale) {
  const canvas = make("canvas", { width: Math.max(1, Math.round(image.width * scale)), height: Math.max(1, Math.round(image.height * scale)) });
  const context = canvas.getContext("2d");
  context.fillStyle = "white"; // JPEG knows no transparency
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/jpeg", 0.92);
}

function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error("The picture cannot be read."));
    reader.readAsDataURL(blob);
  });
}

function take(file) {
  if (file) taking = taken(file);
}

async function taken(file) {
  try {
    picture = await prepared(file);
  } catch (error) {
    return complain(error.message);
  }
  complain("");
  $("preview").replaceChildren(shown(picture, "Your picture"));
  $("invite").hidden = true;
  say("Picture ready.");
}

/** A picture of a data URL; one of few pixels is not blurred when it is shown larger. */
function shown(url, alt) {
  const image = make("img", { src: url, alt });
  image.addEventListener("load", () => image.classList.toggle("tiny", image.naturalWidth < 100));
  return image;
}

async function small(url) {
  const image = make("img", { src: url });
  await image.decode();
  return drawn(image, Math.min(1, SMALL_SIDE / Math.max(image.width, image.height)));
}

// ------------------------------------------------------------------------------------------------ one column

const KINDS = { image: "Looks for this picture on the web", text: "Searches the web" };

/** One workflow's episode: shows events in the order in which they come. */
class Column {
  constructor(workflow) {
    this.steps = make("ol", { className: "steps" });
    this.facts = make("dl", { className: "facts" });
    this.element = make("section", { className: "column card" }, make("h3", {}, WORKFLOWS[workflow]), this.steps, this.facts);
    this.name = WORKFLOWS[workflow];
  }

  busy(now) {
    this.element.classList.toggle("busy", now);
    this.element.setAttribute("aria-busy", String(now));
  }

  show(event) {
    const how = { reason: this.reason, search: this.search, results: this.results, answer: this.answer, failed: this.failed, finished: this.finished, stopped: this.stopped };
    how[event.event]?.call(this, event); // a kind of event that this page does not know is left out
  }

  step(kind, what, ...children) {
    this.steps.append(make("li", { className: kind }, make("p", { className: "what" }, what), ...children));
  }

  reason({ text }) {
    this.step("reason", "Thinks", foreign("p", text));
  }

  search({ kind, query }) {
    this.step("search", KINDS[kind] ?? "Searches", ...(kind === "text" ? [foreign("p", query, "query")] : []));
    say(kind === "text" ? `${this.name}: searching the web for ${query}` : `${this.name}: looking for the picture on the web`);
  }

  results({ kind, hits = [], failure }) {
    if (failure) return this.lastStep().append(make("p", {}, failure === "no_results" ? "Nothing was found." : `The search failed: ${failure}.`));
    const list = make("ul", { className: kind === "image" ? "hits pictures" : "hits" }, ...hits.map(hit));
    list.setAttribute("aria-label", `${hits.length} results`);
    this.lastStep().append(list);
  }

  lastStep() {
    if (!this.steps.lastElementChild) this.step("search", "Searches");
    return this.steps.lastElementChild;
  }

  answer({ text }) {
    this.step("answer", "Answers", foreign("p", text));
    say(`${this.name}: the answer is ${text}`);
  }

  failed({ message }) {
    this.step("failed", "Failed", foreign("p", message));
    say(`${this.name}: ${message}`);
  }

  finished(books) {
    const tokens = `${books.prompt_tokens} in, ${books.completion_tokens} out`;
    const weights = books.weight_version < 0 ? [] : [["weights", `version ${books.weight_version}`]];
    const rest = [["searches", books.searches], ["cost", dollars(books.cost_usd)], ["tokens", tokens], ...weights];
    this.tell([["time", `${books.seconds.toFixed(books.seconds < 1 ? 2 : 1)} s`], ...rest]);
  }

  /** Not of the service: the user ended it. */
  stopped({ seconds }) {
    this.step("failed", "Stopped", make("p", {}, "You stopped this run."));
    this.tell([["time", `${seconds.toFixed(1)} s`]]);
    say(`${this.name}: stopped`);
  }

  tell(pairs) {
    this.facts.replaceChildren(...pairs.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, String(value)))));
  }
}

function dollars(value) {
  return value === 0 ? "$0" : `$${value.toFixed(value < 0.01 ? 5 : 3)}`;
}

function foreign(tag, text, className = "") {
  return make(tag, { className, dir: "auto" }, String(text ?? ""));
}

/** One search result: a link where its address is http(s), a thumbnail where it is a data URL. */
function hit({ title, url, thumbnail, summary }) {
  const parts = [];
  if (PICTURE_URL.test(thumbnail ?? "")) parts.push(shown(thumbnail, ""));
  const address = webAddress(url);
  const name = foreign("bdi", title || address?.hostname || "untitled");
  parts.push(address ? make("a", { href: address.href, target: "_blank", rel: "noopener noreferrer nofollow" }, name) : name);
  if (address) parts.push(make("span", { className: "host" }, address.host));
  if (summary) parts.push(foreign("p", summary, "told"));
  return make("li", {}, ...parts);
}

function webAddress(url) {
  const address = URL.canParse(url ?? "") ? new URL(url) : null;
  return address && ["http:", "https:"].includes(address.protocol) ? address : null;
}

// ------------------------------------------------------------------------------------------------ the service

/** What the service refused, in words for the user. */
class Refusal extends Error {}

/** Ask by one workflow and hand over each event. Throws Refusal, or AbortError when `signal` says so. */
async function ask(question, image, workflow, signal, each) {
  const headers = { "Content-Type": "application/json", Accept: "text/event-stream" };
  const key = $("key").value.trim();
  if (key) headers.Authorization = `Bearer ${key}`;
  const silence = new AbortController();
  let timer = setTimeout(() => silence.abort(), SILENCE_MS);
  try {
    const answer = await fetch("v1/agent", { method: "POST", headers, body: JSON.stringify({ question, image, workflow }), signal: AbortSignal.any([signal, silence.signal]) });
    if (!answer.ok) throw new Refusal(await refusalOf(answer));
    for await (const event of events(answer.body)) {
      clearTimeout(timer);
      timer = setTimeout(() => silence.abort(), SILENCE_MS);
      if (event) each(event);
    }
  } catch (error) {
    if (signal.aborted || error instanceof Refusal) throw error;
    if (silence.signal.aborted) throw new Refusal(`The service said nothing for ${SILENCE_MS / 1000} seconds. Try again.`);
    throw new Refusal("The service cannot be reached, or the connection broke. Try again.");
  } finally {
    clearTimeout(timer);
  }
}

/** The JSON of each server-sent event; null for a comment that only keeps the line open. */
async function* events(body) {
  let rest = "";
  for await (const chunk of body.pipeThrough(new TextDecoderStream())) {
    const blocks = (rest + chunk.replaceAll("\r", "")).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const data = block.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart()).join("\n");
      yield data && data !== "[DONE]" ? JSON.parse(data) : null;
    }
  }
}

async function refusalOf(answer) {
  const body = await answer.json().catch(() => null);
  const told = body?.error?.message;
  if (answer.status === 401 || answer.status === 403) {
    $("access").open = true;
    return told || "This service wants an API key: fill it in at the top right.";
  }
  if (answer.status === 429 || answer.status === 503) return `${told || "The service is busy."} ${again(answer.headers.get("Retry-After"))}`;
  if (answer.status === 413) return told || "The picture is too large.";
  return told || `The service answered with status ${answer.status}.`;
}

/** When to try again, from a Retry-After header (seconds or a date). */
function again(header) {
  const seconds = Math.ceil(/^\d+$/.test(header ?? "") ? Number(header) : (Date.parse(header ?? "") - Date.now()) / 1000);
  if (!(seconds > 0)) return "Try again in a moment.";
  if (seconds < 90) return `Try again in ${seconds} s.`;
  return `Try again at ${new Date(Date.now() + 1000 * seconds).toLocaleTimeString([], { timeStyle: "short" })}.`;
}

// ------------------------------------------------------------------------------------------------ runs

let going = null; // AbortController of the run in progress

async function start() {
  if (going) return;
  going = new AbortController();
  working(true);
  try {
    await taking;
    const question = $("question").value.trim();
    if (!picture) complain("Add a picture first.");
    else if (!question) complain("Write a question first.");
    else await play(question, picture, MODES[new FormData($("ask")).get("mode")], going.signal);
  } finally {
    going = null;
    working(false);
  }
}

/** Ask by some workflows at once, show what they do, keep it. */
async function play(question, image, workflows, signal) {
  complain("");
  const columns = workflows.map((workflow) => ({ workflow, events: [] }));
  const run = { id: Date.now() + Math.random(), at: Date.now(), question, picture: await small(image), columns };
  const views = show(run);
  $("run").scrollIntoView({ block: "nearest" });
  await Promise.all(columns.map((kept, at) => follow(kept, views[at], question, image, signal)));
  await keep(run);
}

/** One column from its first event to its last, whatever happens. */
async function follow(kept, column, question, image, signal) {
  const began = performance.now();
  const seconds = () => (performance.now() - began) / 1000;
  const each = (event) => (kept.events.push(event), column.show(event));
  const clock = setInterval(() => column.tell([["time", `${seconds().toFixed(0)} s`]]), 1000);
  column.busy(true);
  try {
    await ask(question, image, kept.workflow, signal, (event) => (event.event === "finished" && clearInterval(clock), each(event)));
    if (!["finished", "failed"].includes(kept.events.at(-1)?.event)) each({ event: "failed", message: "The connection ended before the answer. Try again." });
  } catch (error) {
    if (signal.aborted) each({ event: "stopped", seconds: seconds() });
    else each({ event: "failed", message: error.message });
  } finally {
    clearInterval(clock);
    column.busy(false);
  }
}

/** Put a run on the page. Returns its columns, which have shown the events that the run has. */
function show(run) {
  const columns = run.columns.map(({ workflow }) => new Column(workflow));
  run.columns.forEach(({ events }, at) => events.forEach((event) => columns[at].show(event)));
  const asked = make("div", { className: "asked" }, shown(run.picture, "Picture of this run"), foreign("h2", run.question));
  const row = make("div", { className: columns.length === 1 ? "columns alone" : "columns" }, ...columns.map((column) => column.element));
  $("run").replaceChildren(asked, row);
  $("run").hidden = false;
  return columns;
}

function working(now) {
  $("send").disabled = now;
  $("stop").hidden = !now;
}

function complain(words) {
  $("trouble").textContent = words;
}

// ------------------------------------------------------------------------------------------------ runs that are kept

/** The object store of kept runs, by id. Rejects where the browser keeps nothing. */
function opened() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open("mmsr-ray", 1);
    request.onupgradeneeded = () => request.result.createObjectStore("runs", { keyPath: "id" });
    request.onsuccess = () => resolve(request.result);
    request.onerror = request.onblocked = () => reject(request.error);
  });
}

/** Do something with the store, as one transaction; the result of the request that `work` returns. */
async function stored(mode, work) {
  const database = await opened();
  try {
    return await new Promise((resolve, reject) => {
      const transaction = database.transaction("runs", mode);
      const request = work(transaction.objectStore("runs"));
      transaction.oncomplete = () => resolve(request.result);
      transaction.onabort = () => reject(transaction.error);
    });
  } finally {
    database.close();
  }
}

const newestFirst = async () => (await stored("readonly", (runs) => runs.getAll())).sort((one, other) => other.at - one.at);

async function keep(run) {
  try {
    await stored("readwrite", (runs) => runs.put(run));
    for (const { id } of (await newestFirst()).slice(KEPT_RUNS)) await stored("readwrite", (runs) => runs.delete(id));
    await list();
  } catch {
    complain("This browser does not keep runs: this one is gone when the page is closed.");
  }
}

async function list() {
  const runs = await newestFirst();
  $("history").hidden = runs.length === 0;
  $("history").querySelector("ul").replaceChildren(...runs.map(entry));
}

function entry(run) {
  const when = new Date(run.at).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
  const words = make("span", {}, foreign("span", run.question), make("span", { className: "faint" }, run.columns.length > 1 ? `${when}, compared` : when));
  const open = make("button", { type: "button", className: "open", onclick: () => reopen(run) }, shown(run.picture, ""), words);
  const remove = make("button", { type: "button", className: "plain", onclick: () => forget((runs) => runs.delete(run.id)) }, "Delete");
  remove.setAttribute("aria-label", `Delete the run: ${run.question}`);
  return make("li", {}, open, remove);
}

function reopen(run) {
  if (going) return complain("Stop the run in progress first.");
  show(run);
  $("run").scrollIntoView({ block: "start" });
  say(`Shown again: ${run.question}`);
}

async function forget(work) {
  try {
    await stored("readwrite", work);
    await list();
  } catch {
    return complain("This browser refused to delete it. Clear this site's data in the browser's settings.");
  }
  (document.querySelector("#history .open") ?? $("question")).focus();
  say("Deleted.");
}

// ------------------------------------------------------------------------------------------------ what the user does

$("file").addEventListener("change", () => take($("file").files[0]));
$("ask").addEventListener("submit", (event) => (event.preventDefault(), start()));
$("access").addEventListener("submit", (event) => (event.preventDefault(), ($("access").open = false)));
$("stop").addEventListener("click", () => going?.abort());
$("forget").addEventListener("click", () => confirm("Delete all earlier runs?") && forget((runs) => runs.clear()));
$("key").value = sessionStorage.getItem("mmsr-key") ?? "";
$("key").addEventListener("input", () => sessionStorage.setItem("mmsr-key", $("key").value.trim()));
addEventListener("keydown", (event) => {
  if (event.key === "Escape") going?.abort();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) start();
});
addEventListener("paste", (event) => {
  const file = [...(event.clipboardData?.files ?? [])].find(({ type }) => type.startsWith("image/"));
  if (file) event.preventDefault(), take(file);
});
for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  addEventListener(kind, (event) => {
    event.preventDefault(); // a file that misses the box must not replace the page
    $("drop").classList.toggle("over", kind === "dragenter" || kind === "dragover");
    if (kind === "drop") take(event.dataTransfer?.files[0]);
  });
}
list().catch(() => say("This browser does not keep runs."));
