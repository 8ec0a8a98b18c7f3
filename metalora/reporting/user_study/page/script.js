"use strict";
// The page of one participant. Everything it knows comes from `state`; nothing says which model made a picture.

const at = (id) => document.getElementById(id);
const SCREENS = ["loading", "consent", "question", "done", "problem"];
let question = null; // as the server describes it
let shownAt = 0; // when all its pictures could be seen
let busy = false;
let pictures = []; // what the large view pages through: {src, title}
let large = 0;

class Answered extends Error {}

async function ask(path, body) {
  const options = { cache: "no-store" };
  if (body !== undefined) {
    options.method = "POST";
    options.headers = { "Content-Type": "application/json" };
    options.body = JSON.stringify(body);
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The study cannot be reached. Check the connection.");
  }
  const told = await response.json().catch(() => ({}));
  if (response.status === 409) throw new Answered(told.error);
  if (response.status === 404) throw new Error("This link is not valid (any more).");
  if (!response.ok) throw new Error(told.error || "The study does not answer as it should.");
  return told;
}

function show(screen, focus) {
  for (const name of SCREENS) at(name).hidden = name !== screen;
  if (focus) at(focus).focus({ preventScroll: true });
}

function fail(error) {
  at("problem-text").textContent = error.message;
  show("problem", "problem-title");
}

async function load() {
  try {
    const told = await ask("state");
    at("trial").hidden = told.kind === "person";
    at("trial").textContent =
      told.kind === "simulated"
        ? "Simulated participant: these answers count as simulated"
        : "Trial: these answers do not count";
    if (!told.agreed) showConsent(told);
    else if (told.question) await showQuestion(told);
    else showDone(told);
  } catch (error) {
    fail(error);
  }
}

function showConsent(told) {
  const paragraphs = told.consent.split(/\n\s*\n/).map((text) => {
    const paragraph = document.createElement("p");
    paragraph.textContent = text;
    return paragraph;
  });
  at("consent-text").replaceChildren(...paragraphs);
  show("consent", "consent-title");
}

function showDone(told) {
  at("done-text").textContent = `All ${told.total} answers are saved.`;
  at("status").textContent = "";
  show("done", "done-title");
}

function element(tag, values, ...children) {
  const made = Object.assign(document.createElement(tag), values);
  made.append(...children);
  return made;
}

async function showQuestion(told) {
  question = told.question;
  const one = question.part === 1;
  const place = question.position;
  at("question").classList.add("waiting");
  show("question");
  window.scrollTo(0, 0);
  at("count").textContent = `Question ${told.answered + 1} of ${told.total}`;
  at("bar").max = told.total;
  at("bar").value = told.answered;
  at("text").textContent = question.text;
  at("prompt").textContent = question.prompt;
  at("person-title").textContent =
    question.references === 1 ? "The reference person" : `The reference person, ${question.references} photos`;
  at("person").classList.toggle("several", question.references > 1);
  at("legend").textContent = one
    ? `Choose one of ${question.options} pictures`
    : `Choose one of ${question.options} sets of ${question.images} pictures`;
  at("hint").textContent =
    `Keys: ${question.options === 2 ? "1, 2" : `1 to ${question.options}`} or arrows choose, Enter confirms, E enlarges.`;
  message("");
  pictures = [];

  at("references").replaceChildren(
    ...Array.from({ length: question.references }, (_, k) => {
      const title = question.references === 1 ? "Reference photo" : `Reference photo ${k + 1}`;
      const button = element("button", { type: "button" }, picture(`reference/${place}/${k}`, title));
      button.setAttribute("aria-label", `${title}, show large`);
      button.addEventListener("click", openLarge.bind(null, pictures.length - 1));
      return button;
    }),
  );
  const options = at("options");
  options.style.setProperty("--columns", question.options);
  options.style.setProperty("--narrow", one ? 2 : 1);
  options.style.setProperty("--images", question.images);
  options.replaceChildren(...Array.from({ length: question.options }, (_, k) => option(k, one)));

  try {
    const images = [...at("question").querySelectorAll("#references img, #options img")];
    await Promise.all(images.map((image) => image.decode())); // none before the others
  } catch {
    fail(new Error("The pictures could not be loaded. Check the connection."));
    return;
  }
  at("question").classList.remove("waiting");
  at("status").textContent = `Question ${told.answered + 1} of ${told.total}`;
  at("text").focus({ preventScroll: true });
  shownAt = performance.now();
}

function picture(src, title) {
  pictures.push({ src, title });
  return element("img", { src, alt: title });
}

function option(k, one) {
  const name = one ? `Picture ${k + 1}` : `Set ${k + 1}`;
  const first = pictures.length;
  const shown = Array.from({ length: question.images }, (_, n) =>
    picture(`option/${question.position}/${k}/${n}`, one ? name : `${name}, picture ${n + 1}`),
  );
  const input = element("input", { type: "radio", name: "choice", value: String(k), id: `choice-${k}` });
  input.setAttribute("aria-label", name);
  input.addEventListener("change", () => message(""));
  const mark = element("span", { className: "mark", textContent: k + 1 });
  const label = element(
    "label",
    { htmlFor: input.id },
    element("span", { className: "pictures" }, ...shown),
    element("span", { className: "name" }, mark, element("span", { className: "chosen" })),
  );
  const enlarge = element("button", { type: "button", className: "enlarge", textContent: "⤢" });
  enlarge.setAttribute("aria-label", `Show ${name.toLowerCase()} large`);
  enlarge.addEventListener("click", openLarge.bind(null, first));
  return element("div", { className: "option" }, input, label, enlarge);
}

const choices = () => [...document.querySelectorAll("#options input")];
const chosen = () => choices().findIndex((input) => input.checked);

function choose(k) {
  const input = choices()[k];
  if (!input) return;
  input.checked = true;
  input.focus();
  message("");
}

function message(text) {
  at("message").textContent = text;
}

async function confirm(event) {
  event.preventDefault();
  if (busy || at("question").classList.contains("waiting")) return;
  const place = chosen();
  if (place < 0) {
    message("Choose one first.");
    return;
  }
  busy = true;
  at("confirm").setAttribute("aria-disabled", "true");
  const seconds = Math.min(86400, Math.round(performance.now() - shownAt) / 1000);
  try {
    await ask("answer", { position: question.position, place, seconds });
    await load();
  } catch (error) {
    if (error instanceof Answered) {
      await load(); // it was saved before, perhaps in another window: go on from there
      if (question) message("That question was answered already.");
    } else {
      message(`Not saved yet. ${error.message} Then confirm again.`);
    }
  } finally {
    busy = false;
    at("confirm").removeAttribute("aria-disabled");
  }
}

function openLarge(which) {
  large = which;
  drawLarge();
  if (!at("large").open) at("large").showModal();
}

function drawLarge() {
  const { src, title } = pictures[large];
  at("large-image").src = src;
  at("large-image").alt = title;
  at("large-title").textContent = title;
}

function turn(by) {
  large = (large + by + pictures.length) % pictures.length;
  drawLarge();
}

function pressed(event) {
  if (event.ctrlKey || event.altKey || event.metaKey || at("question").hidden) return;
  const forward = event.key === "ArrowRight" || event.key === "ArrowDown";
  const backward = event.key === "ArrowLeft" || event.key === "ArrowUp";
  if (at("large").open) {
    if (forward || backward) turn(forward ? 1 : -1);
    return;
  }
  if (at("question").classList.contains("waiting")) return;
  const inside = event.target instanceof HTMLButtonElement;
  if (/^[1-9]$/.test(event.key)) choose(Number(event.key) - 1);
  else if (forward || backward) {
    const count = choices().length;
    const now = chosen();
    choose(now < 0 ? (forward ? 0 : count - 1) : (now + (forward ? 1 : count - 1)) % count);
    event.preventDefault();
  } else if ((event.key === "e" || event.key === "E") && chosen() >= 0) {
    openLarge(question.references + chosen() * question.images);
  } else if (event.key === "Enter" && !inside) {
    event.preventDefault();
    if (!event.repeat) at("form").requestSubmit();
  }
}

at("agree").addEventListener("click", () => ask("consent", { agree: true }).then(load, fail));
at("again").addEventListener("click", load);
at("form").addEventListener("submit", confirm);
at("large-close").addEventListener("click", () => at("large").close());
at("large-before").addEventListener("click", () => turn(-1));
at("large-after").addEventListener("click", () => turn(1));
document.addEventListener("keydown", pressed);
load();
