// The visitors' page: buttons, a queue, and no token.
import { fill, promptButton } from "./buttons.js";

const $ = (id) => document.getElementById(id);
const place = (path) => new URL(path, document.baseURI);
const POLL = 2000;

// A made-up name, so that the page can be told where its own wish stands.
let visitor;
try {
  visitor = sessionStorage.getItem("visitor");
} catch (refused) {
  // storage is, in a sandboxed frame
}
visitor = visitor || Array.from(crypto.getRandomValues(new Uint8Array(12)), (b) => b.toString(16).padStart(2, "0")).join("");
try {
  sessionStorage.setItem("visitor", visitor);
} catch (refused) {
  // then it is new with every visit
}

let shown = "";

function tell(text, bad = false) {
  $("told").textContent = text;
  $("told").classList.toggle("bad", bad);
}

function buttons(prompts) {
  const now = JSON.stringify(prompts);
  if (now === shown) return;
  shown = now;
  fill($("wishes"), prompts.map(({ prompt, picture }) => promptButton(prompt, picture, wish)));
}

function where(state) {
  const wait = Math.ceil(state.again_in_seconds);
  if (state.paused) return tell("The picture stands still for now.");
  if (state.yours_is_shown) return tell("Your wish is on the screen.");
  if (state.yours_in_seconds !== null) return tell(`Yours in ${Math.ceil(state.yours_in_seconds)} s.`);
  if (state.yours_waits_for_approval) return tell("Your wish is being looked at.");
  if (wait > 0) return tell(`You can wish again in ${wait} s.`);
  tell(state.queue ? `What shall it show? ${state.queue} waiting.` : "What shall it show?");
}

async function ask(path, body) {
  const options = body ? { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) } : {};
  const answer = await fetch(place(path), { cache: "no-store", ...options });
  const found = await answer.json();
  if (answer.ok) return found;
  const why = found.detail;
  throw new Error(typeof why === "string" ? why : why.map((one) => one.msg).join("; "));
}

let quiet = 0; // until when what was told last stays

async function refresh() {
  try {
    const state = await ask(`api/guest?${new URLSearchParams({ visitor })}`);
    buttons(state.prompts);
    $("free").hidden = !state.free_text;
    $("words").maxLength = state.longest;
    if (Date.now() > quiet) where(state);
  } catch (error) {
    tell("One moment, please.", true);
  }
}

async function wish(prompt) {
  try {
    quiet = 0;
    where(await ask("api/guest", { visitor, prompt }));
    return true;
  } catch (error) {
    quiet = Date.now() + 4000;
    tell(error.message, true);
    return false;
  }
}

$("free").addEventListener("submit", async (event) => {
  event.preventDefault();
  if ($("words").value.trim() && (await wish($("words").value))) $("words").value = "";
});
refresh();
setInterval(refresh, POLL);
