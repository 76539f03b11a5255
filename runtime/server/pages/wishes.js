// Free texts of visitors that wait for the operator's word.
import { fill } from "./buttons.js";
import { $, ask, order } from "./desk.js";

let shown = "";

function row({ number, prompt }) {
  const made = document.createElement("div");
  made.className = "row";
  const words = document.createElement("span");
  words.textContent = prompt;
  const decide = (text, approve, told) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = text;
    button.addEventListener("click", () => order(told, `api/guest/waiting/${number}`, "POST", { approve }));
    return button;
  };
  made.append(words, decide("Show", true, "It will be shown."), decide("Refuse", false, "It will not be shown."));
  return made;
}

export async function refreshWishes() {
  try {
    const { wishes } = await ask("api/guest/waiting");
    const now = JSON.stringify(wishes);
    if (now === shown) return;
    shown = now;
    fill($("wish-list"), wishes.length ? wishes.map(row) : ["None."]);
  } catch (error) {
    shown = ""; // a token that is wrong, or half written, is no sign of a server that does not answer
    $("wish-list").textContent = error.message;
  }
}
