// What lies above the picture, as the operator orders it.
import { $, ask, order } from "./desk.js";

let current = {};

export async function fillOverlay() {
  current = await ask("api/overlay");
  $("line").value = current.texts.length ? current.texts[0].text : "";
  $("ticker").value = current.ticker ? current.ticker.text : "";
  $("code").value = current.code ? current.code.text : "";
  $("clock").checked = Boolean(current.clock);
  $("logo").checked = Boolean(current.logo);
  if (current.message) $("message").value = current.message.text;
}

// What was there before keeps its place, size and colours.
const part = (before, value) => (value ? { ...(before || {}), text: value } : null);

$("overlay-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const first = part(current.texts && current.texts[0], $("line").value.trim());
  const overlay = {
    ...current,
    message: null, // which has its own orders
    texts: first ? [first, ...current.texts.slice(1)] : (current.texts || []).slice(1),
    ticker: part(current.ticker, $("ticker").value.trim()),
    code: part(current.code, $("code").value.trim()),
    clock: $("clock").checked ? current.clock || {} : null,
    logo: $("logo").checked ? current.logo || {} : null,
  };
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
