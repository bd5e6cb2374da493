"use strict";
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const root = document.documentElement;

  // Storage can be forbidden (private windows, files): then the choice lasts as long as the page.
  const remembered = {
    get: () => { try { return localStorage.getItem("alloykit-theme"); } catch { return null; } },
    set: (value) => { try { localStorage.setItem("alloykit-theme", value); } catch { /* not kept */ } },
  };
  const toggle = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const showTheme = () => {
    toggle.textContent = isDark() ? "Light" : "Dark";
    toggle.setAttribute("aria-label", isDark() ? "Use light colours" : "Use dark colours");
  };
  const stored = remembered.get();
  if (stored === "dark" || stored === "light") root.dataset.theme = stored;
  toggle.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    remembered.set(root.dataset.theme);
    showTheme();
  });
  system.addEventListener("change", showTheme);
  showTheme();
  toggle.hidden = false;

  const board = document.getElementById("board");
  if (board) {
    const body = board.tBodies[0];
    const fold = document.getElementById("fold");
    const chips = all(".chip");
    const said = document.getElementById("shown");
    const SHORT = 12;
    const TOO_FEW = 3; // Hiding so few would cost a click and save nothing.
    let family = "";
    let unfolded = false;

    // The first rows in the present order, and those that the headline speaks of.
    const show = (aloud = true) => {
      const rows = [...body.rows];
      for (const row of rows) row.hidden = family !== "" && row.dataset.family !== family;
      const wanted = rows.filter((row) => !row.hidden);
      const surplus = wanted.filter((row, index) => index >= SHORT && !("always" in row.dataset));
      const long = surplus.length > TOO_FEW;
      const folded = new Set(long && !unfolded ? surplus : []);
      let before = false;
      for (const row of wanted) {
        row.classList.toggle("folded", folded.has(row));
        row.classList.toggle("gap", before && !folded.has(row));
        before = folded.has(row);
      }
      fold.hidden = !long;
      fold.textContent = unfolded ? `Show the first ${SHORT}` : `Show all ${wanted.length}`;
      fold.setAttribute("aria-expanded", String(unfolded));
      if (said && aloud) said.textContent = `${wanted.length - folded.size} of ${rows.length} candidates shown`;
    };
    fold.addEventListener("click", () => {
      unfolded = !unfolded;
      show();
      if (!unfolded) fold.scrollIntoView({ block: "nearest" });
    });
    for (const chip of chips) {
      chip.addEventListener("click", () => {
        family = chip.dataset.family;
        for (const each of chips) each.setAttribute("aria-pressed", String(each === chip));
        show();
      });
    }
    for (const group of all(".chips")) group.hidden = false;

    const heads = all("thead th[scope=col]", board);
    const key = (row, index) => {
      const cell = row.cells[index];
      if (index === 0) return cell.querySelector("bdi").textContent;
      return "value" in cell.dataset ? Number(cell.dataset.value) : null;
    };
    const sort = (head) => {
      const index = heads.indexOf(head);
      const now = head.getAttribute("aria-sort");
      const other = { ascending: "descending", descending: "ascending" };
      const order = other[now] ?? head.dataset.first;
      const sign = order === "ascending" ? 1 : -1;
      const rows = [...body.rows].sort((a, b) => {
        const [x, y] = [key(a, index), key(b, index)];
        if (x === null || y === null) return (x === null) - (y === null);
        return sign * (index === 0 ? x.localeCompare(y) : x - y);
      });
      for (const each of heads) each.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", order);
      body.append(...rows);
      show();
    };
    for (const head of heads) head.querySelector("button").addEventListener("click", () => sort(head));
    show(false);
  }

  // A fading edge says that there is more to the right.
  for (const box of all(".scroll")) {
    const mark = () => {
      box.classList.toggle("more-right", box.scrollLeft + box.clientWidth < box.scrollWidth - 2);
    };
    box.addEventListener("scroll", mark, { passive: true });
    new ResizeObserver(mark).observe(box);
  }

  // Without permission for the clipboard, select the text, so that one key press copies it.
  const select = (code) => {
    const range = document.createRange();
    range.selectNodeContents(code);
    getSelection().removeAllRanges();
    getSelection().addRange(range);
  };
  const copy = async (button) => {
    const code = button.parentElement.querySelector("code");
    let done = false;
    try {
      await navigator.clipboard.writeText(code.textContent);
      done = true;
    } catch {
      select(code);
      try { done = document.execCommand("copy"); } catch { /* the text stays selected */ }
    }
    button.textContent = done ? "Copied" : "Press Ctrl+C";
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  };
  for (const button of all(".copy")) {
    button.addEventListener("click", () => copy(button));
    button.hidden = false;
  }

  addEventListener("beforeprint", () => { for (const each of all("details")) each.open = true; });
})();
