"""The whole study in a real headless Chromium: by keyboard, by touch, interrupted, in two windows; nothing leaks."""

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from flow import Served
from made_up_images import METHODS, PAPER, study
from webdriver import Browser, missing_programs

from metalora.reporting.user_study.analysis import analyse, read_answers
from metalora.reporting.user_study.server import StudyServer
from metalora.reporting.user_study.store import Store

MISSING = missing_programs()
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        bool(MISSING) and os.environ.get("METALORA_BROWSER") != "required",
        reason=f"not installed: {', '.join(MISSING)} (Debian: apt install chromium chromium-driver)",
    ),
]
READY = (
    "!document.getElementById('question').hidden && !document.querySelector('#question.waiting')"
    " && document.getElementById('count').textContent.startsWith('Question {} of ')"
)
DONE = "!document.getElementById('done').hidden"


class Running:
    """A study's server in a thread, on the same port whenever it is started again."""

    def __init__(self, store: Store) -> None:
        self.store, self.port = store, 0
        self.start()

    def start(self) -> None:
        self.server = StudyServer(self.store, port=self.port, consent="First paragraph.\n\nSecond one.")
        self.port = self.server.server_port
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def link(self, token: str) -> str:
        return f"http://127.0.0.1:{self.port}/p/{token}/"


@pytest.fixture
def running(made_up: Path, tmp_path: Path) -> Iterator[Running]:
    found = Running(study(tmp_path / "study.sqlite", made_up))
    yield found
    found.stop()


@pytest.fixture(scope="module")
def desktop() -> Iterator[Browser]:
    with Browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def phone() -> Iterator[Browser]:
    with Browser(phone=True) as browser:
        yield browser


def stored(store: Store) -> list[tuple[int, int]]:
    with store.connect() as connection:
        return connection.execute("SELECT position, place FROM answer ORDER BY participant, position").fetchall()


def begin(browser: Browser, link: str) -> None:
    browser.open(link)
    browser.wait("!document.getElementById('consent').hidden")
    browser.click("#agree")
    browser.wait(READY.format(1))


def test_a_participant_gets_through_by_keyboard_alone(desktop: Browser, running: Running) -> None:
    desktop.open(running.link(running.store.invite(1)[0].token))
    desktop.wait("!document.getElementById('consent').hidden")
    assert desktop.text("#consent-text").splitlines() == ["First paragraph.", "Second one."]
    desktop.press("Tab", "Enter")
    wanted = []
    for position in range(8):
        desktop.wait(READY.format(position + 1))
        assert desktop.text("#count") == f"Question {position + 1} of 8"
        count = desktop.run("return document.querySelectorAll('#options input').length")
        assert count in (2, 5)
        desktop.press("Enter")  # nothing is chosen yet
        assert desktop.text("#message") == "Choose one first." and len(stored(running.store)) == position
        if position % 3 == 0:
            desktop.press(str(count))
            place = count - 1
        elif position % 3 == 1:
            desktop.press("ArrowRight", "ArrowRight")
            place = 1
        else:
            desktop.press("1", "ArrowLeft")  # round to the last
            place = count - 1
        assert desktop.run("return document.querySelector('#options input:checked').value") == str(place)
        desktop.press("9")  # there is no ninth
        assert desktop.run("return document.querySelector('#options input:checked').value") == str(place)
        desktop.press("Enter")
        wanted.append((position, place))
    desktop.wait(DONE)
    assert "All 8 answers are saved" in desktop.text("#done")
    assert stored(running.store) == wanted
    assert desktop.complaints() == []  # nothing that the content policy forbids, no error


def test_a_participant_gets_through_by_touch_on_a_phone(phone: Browser, running: Running) -> None:
    phone.open(running.link(running.store.invite(1)[0].token))
    phone.wait("!document.getElementById('consent').hidden")
    phone.tap("#agree")
    for position in range(8):
        phone.wait(READY.format(position + 1))
        assert phone.run("return document.documentElement.scrollWidth <= window.innerWidth")
        sizes = phone.run(
            "return [...document.querySelectorAll('#options label, .enlarge, #confirm')]"
            ".map(e => e.getBoundingClientRect()).map(r => Math.min(r.width, r.height))"
        )
        assert min(sizes) >= 44  # what a finger needs
        phone.run("document.querySelector('label[for=choice-1]').scrollIntoView({block: 'center'})")
        phone.tap("label[for=choice-1]")
        assert phone.run("return document.getElementById('choice-1').checked")
        phone.tap("#confirm")
    phone.wait(DONE)
    assert stored(running.store) == [(position, 1) for position in range(8)]
    assert phone.complaints() == []


def test_the_large_view_shows_every_picture_and_gives_the_focus_back(desktop: Browser, running: Running) -> None:
    begin(desktop, running.link(running.store.invite(1)[0].token))
    pictures = desktop.run("return document.querySelectorAll('#references img, #options img').length")
    desktop.press("2", "e")
    desktop.wait("document.getElementById('large').open")
    titles = set()
    for _ in range(pictures):
        titles.add(desktop.text("#large-title"))
        desktop.wait("document.getElementById('large-image').naturalWidth > 0")
        desktop.press("ArrowRight")
    assert len(titles) == pictures
    desktop.press("1", "Enter")  # chooses nothing behind the large view; Enter presses its button
    desktop.wait("!document.getElementById('large').open")
    assert desktop.run("return document.activeElement.id") == "choice-1"
    assert stored(running.store) == []


def test_it_goes_on_where_it_stopped(desktop: Browser, running: Running) -> None:
    link = running.link(running.store.invite(1)[0].token)
    begin(desktop, link)
    desktop.press("1", "Enter")
    desktop.wait(READY.format(2))
    desktop.press("2")  # chosen, not confirmed
    desktop.open("about:blank")
    desktop.open(link)
    desktop.wait(READY.format(2))
    assert not desktop.run("return document.querySelector('#options input:checked')")
    assert stored(running.store) == [(0, 0)]


@pytest.mark.slow
def test_the_server_is_killed_and_the_participant_goes_on(desktop: Browser, made_up: Path, tmp_path: Path) -> None:
    """`metalora study serve`, kill -9, an answer that cannot be saved, served again, confirmed again: one answer."""
    store = study(tmp_path / "study.sqlite", made_up)
    served = Served(store.path)
    try:
        begin(desktop, f"http://127.0.0.1:{served.port}/p/{served.tokens[0]}/")
        desktop.press("1", "Enter")
        desktop.wait(READY.format(2))
        served.kill()
        desktop.press("2", "Enter")
        desktop.wait("document.getElementById('message').textContent.startsWith('Not saved yet')")
        assert desktop.run("return document.querySelector('#options input:checked').value") == "1"
        assert stored(store) == [(0, 0)]
        served = Served(store.path, port=served.port)
        desktop.press("Enter")
        desktop.wait(READY.format(3))
        assert stored(store) == [(0, 0), (1, 1)]
    finally:
        served.kill()
    desktop.complaints()  # the failed request, rightly


def test_two_windows_of_one_participant_give_one_answer(desktop: Browser, phone: Browser, running: Running) -> None:
    link = running.link(running.store.invite(1)[0].token)
    begin(desktop, link)
    phone.open(link)
    phone.wait(READY.format(1))
    desktop.press("1", "Enter")
    desktop.wait(READY.format(2))
    phone.tap("label[for=choice-1]")
    phone.tap("#confirm")
    phone.wait(READY.format(2))
    assert "answered already" in phone.text("#message")
    assert stored(running.store) == [(0, 0)]
    phone.complaints()  # the refused answer, rightly


def test_nothing_in_the_page_tells_the_models_apart(desktop: Browser, running: Running) -> None:
    begin(desktop, running.link(running.store.invite(1)[0].token))
    for position in range(8):
        desktop.wait(READY.format(position + 1))
        seen = desktop.source() + json.dumps(
            desktop.run("return performance.getEntriesByType('resource').map(e => e.name)")
        )
        seen += desktop.run("return JSON.stringify([document.cookie, {...localStorage}, {...sessionStorage}])")
        assert not [word for word in (*METHODS, "lora", "ffhq", "unsplash", "p00") if word in seen.lower()]
        boxes = desktop.run(
            "return [...document.querySelectorAll('#options img')].map(e => [e.naturalWidth, e.naturalHeight, e.width])"
        )
        assert len({tuple(box) for box in boxes}) == 1  # all of one size
        desktop.press("1", "Enter")


def test_assistive_programs_hear_what_is_asked(desktop: Browser, running: Running) -> None:
    begin(desktop, running.link(running.store.invite(1)[0].token))
    count = desktop.run("return document.querySelectorAll('#options input').length")
    kind = "Picture" if count == 5 else "Set"
    assert [desktop.name(f"#choice-{k}") for k in range(count)] == [f"{kind} {k + 1}" for k in range(count)]
    assert desktop.role("#choice-0") == "radio" and desktop.role("fieldset") == "group"
    assert desktop.name("fieldset").startswith(f"Choose one of {count}")
    assert desktop.name("#bar") == "Question 1 of 8" and desktop.role("#bar") == "progressbar"
    assert desktop.run("return document.activeElement.id") == "text"  # the question is read first
    assert desktop.run("return [...document.images].every(i => i.id === 'large-image' || i.alt)")
    order = []
    for _ in range(3 + count + 5):
        desktop.press("Tab")
        order.append(desktop.run("const e = document.activeElement; return e.id || e.className || e.parentElement.id"))
    assert order[0] == "references" and "choice-0" in order and "enlarge" in order and "confirm" in order
    assert order.index("choice-0") < order.index("enlarge") < order.index("confirm")


def test_words_stand_out_from_the_ground(desktop: Browser, running: Running) -> None:
    """WCAG AA: 4.5 to 1 for text."""
    begin(desktop, running.link(running.store.invite(1)[0].token))
    desktop.press("Enter")  # shows the message
    found = desktop.run(CONTRAST)
    assert len(found) > 8
    assert min(found.values()) >= 4.5, found


CONTRAST = """
const light = (rgb) => {
  const [r, g, b] = rgb.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const colour = (text) => text.match(/[\\d.]+/g).map(Number);
const ground = (e) => {
  for (; e; e = e.parentElement) {
    const found = colour(getComputedStyle(e).backgroundColor);
    if (found.length === 3 || found[3] > 0.9) return found.slice(0, 3);
  }
  return [255, 255, 255];
};
const found = {};
for (const e of document.querySelectorAll("#question *")) {
  if (![...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()) || !e.getClientRects().length) continue;
  const [a, b] = [light(colour(getComputedStyle(e).color).slice(0, 3)), light(ground(e))];
  const name = `${e.tagName} ${e.id} ${e.className} ${e.textContent.slice(0, 20)}`;
  found[name] = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}
return found;
"""


@pytest.mark.parametrize("token", ["A" * 32, "short"])
def test_a_wrong_link_says_so(desktop: Browser, running: Running, token: str) -> None:
    for link in (running.link(token), f"http://127.0.0.1:{running.port}/"):
        desktop.open(link)
        assert "personal link" in desktop.text("main")
        assert desktop.run("return document.styleSheets[0].cssRules.length") > 10
    desktop.complaints()  # the 404, rightly


@pytest.mark.parametrize(("kind", "told"), [("trial", "do not count"), ("simulated", "Simulated participant")])
def test_answers_that_are_no_persons_say_so(desktop: Browser, running: Running, kind: str, told: str) -> None:
    begin(desktop, running.link(running.store.invite(1, kind=kind)[0].token))  # type: ignore[arg-type]
    assert told in desktop.text("#trial")
    begin(desktop, running.link(running.store.invite(1)[0].token))
    assert desktop.run("return document.getElementById('trial').hidden")


@pytest.mark.slow
def test_the_papers_64_questions_from_the_first_click_to_the_tables(
    desktop: Browser, made_up: Path, tmp_path: Path
) -> None:
    """Two simulated participants in the browser, one for Meta-LoRA, one for LoRA+aug and PuLID: the tables say so."""
    running = Running(study(tmp_path / "study.sqlite", made_up, counts=PAPER))
    try:
        for favourites in (("meta_lora",), ("lora_aug", "pulid")):
            (invitation,) = running.store.invite(1, kind="simulated")
            places = wanted_places(running.store, invitation.participant, favourites)
            begin(desktop, running.link(invitation.token))
            for position, place in enumerate(places):
                desktop.wait(READY.format(position + 1))
                desktop.press(str(place + 1), "Enter")
            desktop.wait(DONE)
    finally:
        running.stop()
    assert desktop.complaints() == []
    answers = read_answers(running.store, kind="simulated")
    assert answers.participants == 2
    for part, rival in ((1, "lora_aug"), (2, "pulid")):
        found = analyse(answers.choices, part=part, ours="meta_lora", resamples=200)
        assert found is not None
        shares = {(s.model, s.column): s.percent for s in found.shares}
        for column in ("overall", *found.questions):
            assert shares["meta_lora", column] == shares[rival, column] == 50.0


def wanted_places(store: Store, participant: int, favourites: tuple[str, ...]) -> list[int]:
    """Where the first favourite that is there stands, question by question."""
    with store.connect() as connection:
        shown = connection.execute(
            "SELECT category, places FROM showing JOIN question ON question.id = question "
            "WHERE participant = ? ORDER BY position",
            (participant,),
        ).fetchall()
    places = []
    for category, order in shown:
        models = METHODS if category in ("multi", "single") else ("pulid", "meta_lora")
        favourite = next(m for m in favourites if m in models)
        places.append(json.loads(order).index(models.index(favourite)))
    return places
