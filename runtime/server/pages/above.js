// What lies above the picture, as the operator orders it.
import { $, ask, order, tell } from "./desk.js";

const FIELDS = ["line", "ticker", "code", "clock", "logo"];
const value = (field) => (field.type === "checkbox" ? field.checked : field.value.trim());
function values() {
  const found = {};
  for (const id of FIELDS) found[id] = value($(id));
  return found;
}
let filled = values();

export async function fillOverlay() {
  const now = await ask("api/overlay");
  $("line").value = now.texts.length ? now.texts[0].text : "";
  $("ticker").value = now.ticker ? now.ticker.text : "";
  $("code").value = now.code ? now.code.text : "";
  $("clock").checked = Boolean(now.clock);
  $("logo").checked = Boolean(now.logo);
  if (now.message) $("message").value = now.message.text;
  filled = values();
}

// What was there before keeps its place, size and colours.
const part = (before, text) => (text ? { ...(before || {}), text } : null);

// The overlay as it is now with what was changed on this page, which may have been open for days, and nothing else.
function changed(now) {
  const overlay = { ...now, message: null }; // which has its own orders
  const given = values();
  if (given.line !== filled.line) {
    const first = part(now.texts[0], given.line);
    overlay.texts = first ? [first, ...now.texts.slice(1)] : now.texts.slice(1);
  }
  for (const id of ["ticker", "code"]) if (given[id] !== filled[id]) overlay[id] = part(now[id], given[id]);
  for (const id of ["clock", "logo"]) if (given[id] !== filled[id]) overlay[id] = given[id] ? now[id] || {} : null;
  return overlay;
}

$("overlay-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  let overlay;
  try {
    overlay = changed(await ask("api/overlay"));
  } catch (error) {
    return tell(error.message, true);
  }
  if (await order("It lies above the picture now.", "api/overlay", "PUT", overlay)) fillOverlay();
});
$("reset").addEventListener("click", async () => {
  if (await order("The overlay is the configuration's again.", "api/overlay", "DELETE")) fillOverlay();
});
$("logo-file").addEventListener("change", async () => {
  const [file] = $("logo-file").files;
  if (file && (await order("The logo is shown.", "api/overlay/logo", "PUT", file))) fillOverlay();
});
$("message-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (await order("The message covers everything.", "api/overlay/message", "POST", { text: $("message").value })) fillOverlay();
});
$("uncover").addEventListener("click", async () => {
  if (await order("The message is gone.", "api/overlay/message", "DELETE")) fillOverlay();
});
