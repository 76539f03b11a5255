// What an element holds from now on; the method that does it in one is younger than browsers that visitors have.
export function fill(element, children) {
  element.textContent = "";
  element.append(...children);
}

// A button of a prompt, with its picture where there is one.
export function promptButton(prompt, picture, pressed) {
  const button = document.createElement("button");
  button.type = "button";
  if (picture) {
    const image = new Image();
    image.alt = "";
    image.src = new URL(`api/prompts/picture.jpg?${new URLSearchParams({ prompt })}`, document.baseURI);
    button.append(image);
  }
  const words = document.createElement("span");
  words.textContent = prompt;
  button.append(words);
  button.addEventListener("click", () => pressed(prompt));
  return button;
}
