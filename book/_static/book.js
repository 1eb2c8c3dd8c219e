/* What is wider than the page scrolls in its own box, which the keyboard can reach; films have a button below them. */
const BOXES = ".highlight, .highlight pre, .output-box, .cell_output, .output, .pst-scrollable-table-container, .math";

function markScrollingBoxes() {
  for (const box of document.querySelectorAll(BOXES)) {
    if (box.scrollWidth > box.clientWidth + 1 && getComputedStyle(box).overflowX !== "visible") {
      const figure = box.closest("figure");
      const name = figure ? figure.querySelector("figcaption strong")?.textContent : "";
      box.tabIndex = 0;
      box.setAttribute("role", "region");
      box.setAttribute("aria-label", `${name || "Table or figure"} wider than the screen`);
    } else if (box.getAttribute("role") === "region") {
      for (const attribute of ["tabindex", "role", "aria-label"]) box.removeAttribute(attribute);
    }
  }
}

function addFilmButton(video) {
  const button = document.createElement("button");
  const about = video.getAttribute("aria-label");
  const show = () => {
    button.textContent = video.paused ? "Play" : "Pause";
    button.setAttribute("aria-label", `${button.textContent}: ${about}`);
  };
  button.type = "button";
  button.className = "film-button";
  button.addEventListener("click", () => {
    video.dataset.stopped = video.paused ? "" : "yes";
    if (video.paused) video.play();
    else video.pause();
  });
  video.addEventListener("play", show);
  video.addEventListener("pause", show);
  /* The browser's own controls would cover the lower edge of the film. */
  video.controls = false;
  video.after(button);
  show();
}

function startFilms() {
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const films = [...document.querySelectorAll("figure.film video")];
  /* A film plays while it is on the screen, unless the reader has stopped it or wants little motion. */
  const observer = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) target.pause();
      else if (!still.matches && !target.dataset.stopped) target.play().catch(() => {});
    }
  });
  for (const video of films) {
    addFilmButton(video);
    observer.observe(video);
  }
  still.addEventListener("change", () => films.forEach((video) => still.matches && video.pause()));
}

document.addEventListener("DOMContentLoaded", () => {
  startFilms();
  markScrollingBoxes();
  /* Figures that load late may be wide. */
  window.addEventListener("load", markScrollingBoxes);
  window.addEventListener("resize", markScrollingBoxes);
  for (const details of document.querySelectorAll("details")) details.addEventListener("toggle", markScrollingBoxes);
});
