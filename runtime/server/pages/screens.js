// The list of screens: which is dark, frozen or missing, what it shows, and what it can be told.
import { fill } from "./buttons.js";
import { $, ask, order } from "./desk.js";

const GOOD = ["ok", "hidden", "gone"];
const seconds = (value) => (value === null || value === undefined ? "–" : value < 120 ? `${Math.round(value)} s` : `${Math.round(value / 60)} min`);

function cell(text, bad = false) {
  const made = document.createElement("td");
  made.textContent = text;
  made.classList.toggle("bad", bad);
  return made;
}

function button(name, text, act) {
  const made = document.createElement("button");
  made.dataset.what = `${text} ${name}`;
  made.setAttribute("aria-label", made.dataset.what);
  made.type = "button";
  made.textContent = text;
  made.addEventListener("click", act);
  return made;
}

function row(screen) {
  const made = document.createElement("tr");
  const path = `api/screens/${encodeURIComponent(screen.name)}`;
  const picture = document.createElement("td");
  if (screen.picture_seconds !== null) {
    const image = new Image();
    image.alt = `What ${screen.name} showed ${seconds(screen.picture_seconds)} ago`;
    image.src = `${path}/picture.jpg?${Math.round(Date.now() / 1000 - screen.picture_seconds)}`;
    picture.append(image);
  }
  const acts = document.createElement("td");
  if (screen.frames_shown !== undefined) {
    acts.append(
      button(screen.name, "Picture", () => order(`${screen.name} sends a picture.`, `${path}/picture`, "POST")),
      button(screen.name, "Reload", () => order(`${screen.name} loads its page anew.`, `${path}/reload`, "POST")),
    );
  } else {
    acts.append(button(screen.name, "Forget", () => order(`${screen.name} is forgotten.`, path, "DELETE")));
  }
  made.append(
    cell(screen.name),
    cell(screen.state, !GOOD.includes(screen.state)),
    picture,
    cell(screen.fps === null || screen.fps === undefined ? "–" : screen.fps),
    cell(screen.delay_seconds === undefined ? "–" : `${screen.delay_seconds} s`),
    cell(screen.skew_ms === null || screen.skew_ms === undefined ? "–" : `${Math.round(screen.skew_ms)} ms`),
    cell(seconds(screen.last_report_seconds)),
    acts,
  );
  return made;
}

export async function refreshScreens() {
  const { screens } = await ask("api/screens");
  const list = $("screen-list");
  if (list.matches(":active")) return; // a button there is being pressed
  const held = list.contains(document.activeElement) ? document.activeElement.dataset.what : null;
  fill(list, screens.map(row));
  const again = [...list.querySelectorAll("button")].find((one) => held && one.dataset.what === held);
  if (again) again.focus();
}
