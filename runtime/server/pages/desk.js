// What the parts of the operator's page share: requests with the token, and the line that tells what became of an order.
export const $ = (id) => document.getElementById(id);
const token = $("token");
try {
  token.value = sessionStorage.getItem("token") || "";
  token.addEventListener("input", () => sessionStorage.setItem("token", token.value));
} catch (refused) {
  // storage is refused: the token is asked for again with every visit
}

// Without what a paste brings along (blanks, dots, zero-width marks): no header can carry it, and no token has it.
const given = () => token.value.replace(/[^\x21-\x7e]/g, "");
export const hasToken = () => Boolean(given());

export function tell(text, bad = false) {
  $("told").textContent = text;
  $("told").classList.toggle("bad", bad);
}

export async function ask(path, method = "GET", body) {
  const headers = { Authorization: `Bearer ${given()}` };
  const raw = body instanceof Blob;
  if (body !== undefined && !raw) headers["Content-Type"] = "application/json";
  const answer = await fetch(path, { method, headers, body: body === undefined || raw ? body : JSON.stringify(body) });
  const text = await answer.text();
  const found = text ? JSON.parse(text) : null;
  if (!answer.ok && answer.status !== 503) {
    const why = found && found.detail;
    throw new Error(typeof why === "string" ? why : (why || []).map((one) => `${one.loc.slice(1).join(".")}: ${one.msg}`).join("; "));
  }
  return found;
}

// An order wants the token: without it, it is asked for, and the order given once it is there.
let waiting = null;
export async function order(text, path, method, body) {
  if (!hasToken()) {
    waiting = () => order(text, path, method, body);
    tell("Enter the token first; then the order is given.", true);
    $("access").scrollIntoView({ block: "center" });
    token.focus();
    return false;
  }
  waiting = null;
  try {
    await ask(path, method, body);
    tell(text);
    return true;
  } catch (error) {
    tell(error.message, true);
    return false;
  }
}
$("access-form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (waiting && hasToken()) waiting();
});
