// The operator's page: what is running, and orders.
import { fillOverlay } from "./above.js";
import { promptButton } from "./buttons.js";
import { $, ask, hasToken, order as give } from "./desk.js";
import { Overlay } from "./overlay.js";
import { Player } from "./player.js";
import { refreshScreens } from "./screens.js";
import { refreshWishes } from "./wishes.js";

async function order(text, path, method, body) {
  if (await give(text, path, method, body)) refresh();
}

$("prompts").addEventListener("submit", (event) => {
  event.preventDefault();
  change($("words").value.trim() || $("text").value);
});
function change(prompt) {
  const change = { prompt, transition: $("transition").value, crossfade: Number($("crossfade").value) };
  order("The prompt changes with the next chunk.", "api/prompt", "POST", change);
}
$("playlist").addEventListener("submit", (event) => {
  event.preventDefault();
  const items = [];
  for (const line of $("items").value.split("\n").filter((one) => one.trim())) {
    const [seconds, ...prompt] = line.split(":");
    items.push({ seconds: Number(seconds), prompt: prompt.join(":").trim() });
  }
  order("The playlist begins with the next chunk.", "api/playlist", "PUT", { items, loop: $("loop").checked });
});
$("next").addEventListener("click", () => order("Next item.", "api/playlist/next", "POST"));
$("end").addEventListener("click", () => order("The playlist has ended.", "api/playlist", "DELETE"));
$("pause").addEventListener("click", () => {
  const paused = $("pause").dataset.paused === "true";
  order(paused ? "It goes on." : "It stands still.", paused ? "api/resume" : "api/pause", "POST");
});

async function refresh() {
  try {
    const [state, health, history] = await Promise.all([ask("api/state"), ask("healthz"), ask("api/history")]);
    await fillOnce(state);
    $("prompt").textContent = state.prompt || "–";
    $("generator").textContent = `${state.generator}, restarted ${state.restarts} times, up ${Math.round(state.uptime_seconds / 60)} min`;
    $("speed").textContent = state.chunk_ms ? `${state.chunk_ms} ms, ${state.real_time_factor}× real time` : "–";
    $("viewers").textContent = state.viewers;
    $("health").textContent = [health.status, ...health.problems].join(" · ");
    $("health").classList.toggle("bad", health.status !== "ok");
    $("timetable").textContent = timetable(state.timetable);
    $("free").hidden = !state.free_text;
    $("pause").textContent = state.paused ? "Resume" : "Pause";
    $("pause").dataset.paused = state.paused;
    draw(history);
    await refreshScreens();
    $("guests").hidden = !state.guests;
    if (state.guests && hasToken()) refreshWishes();
  } catch (error) {
    $("health").textContent = "the server does not answer";
    $("health").classList.add("bad");
  }
}

// The server's own time of day, in the timetable's zone, as it says it.
function timetable({ timezone, time, next }) {
  const now = `${time.slice(11, 16)} (${timezone})`;
  if (!next) return now;
  const what = next.prompt || (next.pause ? "pause" : "a playlist");
  const day = next.at.slice(0, 10) === time.slice(0, 10) ? "" : `${next.at.slice(0, 10)} `;
  return `${now}; next: ${day}${next.at.slice(11, 16)} ${what}`;
}

async function log() {
  if (!hasToken()) return;
  try {
    const box = $("lines");
    const atEnd = box.scrollTop + box.clientHeight >= box.scrollHeight - 4;
    box.textContent = (await ask("api/log?lines=200")).lines.join("\n");
    if (atEnd) box.scrollTop = box.scrollHeight;
  } catch (error) {
    $("lines").textContent = error.message;
  }
}

function draw({ seconds, real_time_factor: factors }) {
  const canvas = $("chart");
  const scale = window.devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  canvas.width = width * scale;
  canvas.height = height * scale;
  const c = canvas.getContext("2d");
  c.scale(scale, scale);
  c.font = "12px system-ui, sans-serif";
  const line = (values, colour, label, row) => {
    const top = Math.max(...values, 1e-9) * 1.15;
    c.strokeStyle = colour;
    c.lineWidth = 1.5;
    c.beginPath();
    values.forEach((v, i) => c.lineTo((i / Math.max(1, values.length - 1)) * width, height - (v / top) * (height - 20)));
    c.stroke();
    c.fillStyle = colour;
    c.fillText(label, 6, 12 + 15 * row);
  };
  if (!seconds.length) return;
  line(seconds, "#7cc4ff", `latency: now ${(1000 * last(seconds)).toFixed(0)} ms, at most ${(1000 * Math.max(...seconds)).toFixed(0)} ms`, 0);
  line(factors, "#ffd479", `real-time factor: now ${last(factors).toFixed(2)}, at least ${Math.min(...factors).toFixed(2)}`, 1);
}

const last = (values) => values[values.length - 1];

// At the first answer of every life of the server: another bundle may have other prompts. What somebody types stays.
let uptime = Infinity;
async function fillOnce(state) {
  const first = uptime === Infinity;
  if (first || state.uptime_seconds < uptime) {
    await fillPrompts();
    if (first) {
      await fillPlaylist();
      await fillOverlay();
    }
  }
  uptime = state.uptime_seconds;
}

let prompts = [];
async function fillPrompts() {
  const found = await ask("api/prompts");
  prompts = found.prompts;
  const chosen = $("text").value;
  for (const id of ["text", "thumbs"]) $(id).textContent = "";
  for (const prompt of prompts) $("text").append(new Option(prompt, prompt, false, prompt === chosen));
  $("thumbs").append(...found.pictures.map((prompt) => promptButton(prompt, true, change)));
}

async function fillPlaylist() {
  const playlist = await ask("api/playlist");
  const items = playlist ? playlist.items : prompts.slice(0, 3).map((prompt) => ({ prompt, seconds: 60 }));
  $("items").value = items.map((item) => `${item.seconds}: ${item.prompt}`).join("\n");
}

new Player($("video"), $("still"), { screen: "operator", preview: true, overlay: new Overlay($("overlay")) });
refresh();
log();
setInterval(refresh, 1000);
setInterval(log, 3000);
$("token").addEventListener("change", log);
