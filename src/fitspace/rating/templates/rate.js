"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  let rater = "", order = [], answers = {}, shownSince = 0;

  const place = () => `fitspace-rate/${data.study}/${data.design}/${rater}`;
  const seedOf = (text) => [...text].reduce((h, c) => Math.imul(h ^ c.codePointAt(0), 16777619) >>> 0, 2166136261);

  // Each rater has an order of their own, the same whenever they come back.
  function shuffled(count, seed) {
    const numbers = [...Array(count).keys()];
    let state = seed;
    const next = () => {
      state = (state + 0x6d2b79f5) >>> 0;
      let t = Math.imul(state ^ (state >>> 15), state | 1);
      t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
      return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
    };
    for (let i = count - 1; i > 0; i--) {
      const j = Math.floor(next() * (i + 1));
      [numbers[i], numbers[j]] = [numbers[j], numbers[i]];
    }
    return numbers;
  }

  const open = () => order.map((i) => data.pairs[i]).find((pair) => !(pair.name in answers));

  function show() {
    const pair = open(), done = Object.keys(answers).length;
    at("judge").hidden = !pair;
    at("end").hidden = Boolean(pair);
    at("keep").hidden = done === 0;
    at("progress").max = data.pairs.length;
    at("progress").value = done;
    at("state").textContent = `${done} of ${data.pairs.length} judged`;
    at("back").disabled = done === 0;
    if (!pair) return;
    at("caption").textContent = pair.caption;
    for (const side of ["left", "right", "reference"]) at(side).src = pair[side];
    shownSince = performance.now();
  }

  function keep() {
    localStorage.setItem(place(), JSON.stringify(answers));
  }

  function judge(choice) {
    const pair = open();
    if (!pair) return;
    const seconds = Math.round((performance.now() - shownSince) / 100) / 10;
    answers[pair.name] = { choice, seconds };
    keep();
    show();
  }

  function back() {
    const last = Object.keys(answers).pop();
    if (last === undefined) return;
    delete answers[last];
    keep();
    show();
  }

  at("who").addEventListener("submit", (event) => {
    event.preventDefault();
    rater = at("rater").value.trim();
    if (!rater) return;
    order = shuffled(data.pairs.length, seedOf(rater));
    answers = JSON.parse(localStorage.getItem(place()) || "{}");
    at("who").hidden = true;
    show();
  });
  for (const button of document.querySelectorAll("[data-choice]"))
    button.addEventListener("click", () => judge(button.dataset.choice));
  at("back").addEventListener("click", back);
  document.addEventListener("keydown", (event) => {
    if (at("judge").hidden || event.ctrlKey || event.metaKey || event.altKey) return;
    const choice = { ArrowLeft: "left", ArrowRight: "right", ArrowDown: "tie" }[event.key];
    if (choice) judge(choice);
    else if (event.key === "Backspace") back();
    else return;
    event.preventDefault();
  });
  at("save").addEventListener("click", () => {
    const given = Object.entries(answers).map(([pair, answer]) => ({ pair, ...answer }));
    const text = JSON.stringify({ study: data.study, design: data.design, rater, answers: given }, null, 2);
    const link = document.createElement("a");
    link.href = "data:application/json;charset=utf-8," + encodeURIComponent(text + "\n");
    link.download = `${data.study}-${rater.replace(/[^A-Za-z0-9_-]+/g, "_")}.json`;
    link.click();
  });
})();
