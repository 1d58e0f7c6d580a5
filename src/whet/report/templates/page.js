"use strict";
// Without this script every canvas shows its final state. With it, time can be walked through.
for (const canvas of document.querySelectorAll(".canvas")) {
  const last = Number(canvas.dataset.steps);
  const slider = canvas.querySelector("input");
  const button = canvas.querySelector("button");
  const output = canvas.querySelector("output");
  const runs = [...canvas.querySelectorAll(".run")];
  let timer = null;

  const show = (now) => {
    slider.value = String(now);
    output.textContent = `step ${now} of ${last}`;
    for (const run of runs) {
      run.classList.toggle("done", now < last && now >= Number(run.dataset.steps));
      for (const cell of run.querySelectorAll(".cell")) {
        const step = Number(cell.dataset.step);
        cell.classList.toggle("masked", step > now);
        cell.classList.toggle("fresh", step === now && now > 0 && now < last);
      }
    }
  };
  const stop = () => {
    clearInterval(timer);
    timer = null;
    button.textContent = "▶ Play";
  };
  const play = () => {
    show(Number(slider.value) >= last ? 0 : Number(slider.value));
    button.textContent = "❚❚ Pause";
    timer = setInterval(() => {
      const next = Number(slider.value) + 1;
      show(Math.min(next, last));
      if (next >= last) stop();
    }, Math.max(120, Math.min(600, 9000 / Math.max(1, last))));
  };

  button.addEventListener("click", () => (timer === null ? play() : stop()));
  slider.addEventListener("input", () => { stop(); show(Number(slider.value)); });
  for (const run of runs) {
    const mark = (event, on) => {
      const cell = event.target.closest(".cell");
      if (!cell) return;
      for (const other of run.querySelectorAll(".cell")) {
        const mate = other.dataset.step === cell.dataset.step && cell.dataset.step !== "0";
        other.classList.toggle("mate", on && mate);
      }
    };
    run.addEventListener("mouseover", (event) => mark(event, true));
    run.addEventListener("mouseout", (event) => mark(event, false));
  }
  canvas.querySelector(".player").hidden = last === 0;
}
