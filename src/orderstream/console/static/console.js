// The console's own script. Every page works without it: it adds the theme, keys, ages that tick, copy buttons, a
// question before an action, charts, and the state of the connection. It evaluates no strings and writes no HTML.
"use strict";

(() => {
  const root = document.documentElement;
  const find = (id) => document.getElementById(id);
  const stored = (name) => { try { return localStorage.getItem(name); } catch { return null; } };
  const store = (name, value) => { try { localStorage.setItem(name, value); } catch { /* private mode */ } };
  const ready = (start) => document.addEventListener("DOMContentLoaded", start);

  // ---- Theme. This runs before the first paint, so that the page never flashes in the other theme.
  const THEMES = ["system", "light", "dark"];
  let theme = THEMES.includes(stored("theme")) ? stored("theme") : "system";
  const applyTheme = () => {
    if (theme === "system") delete root.dataset.theme; else root.dataset.theme = theme;
  };
  applyTheme();
  root.classList.add("scripted");
  ready(() => {
    const button = find("theme");
    const show = () => { button.textContent = `Theme: ${theme}`; };
    show();
    button.addEventListener("click", () => {
      theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
      store("theme", theme);
      applyTheme();
      show();
      drawPlots();
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawPlots());
  });

  // ---- Time. Ages are computed by the server's clock. `skew` is the server's time minus the browser's.
  const skew = root.dataset.now ? Date.parse(root.dataset.now) - Date.now() : 0;
  const now = () => Date.now() + skew;
  const clock = (time) => new Date(time).toISOString().slice(11, 19);
  const span = (seconds) => { // the same texts as the filter `age`
    for (const [limit, unit, name] of [[120, 1, "s"], [7200, 60, "min"], [172800, 3600, "h"]]) {
      if (seconds < limit) return `${(seconds / unit).toFixed(0)} ${name}`;
    }
    return `${(seconds / 86400).toFixed(0)} d`;
  };
  const since = (time) => {
    const seconds = (now() - time) / 1000;
    if (Math.abs(seconds) < 1) return "now";
    return seconds > 0 ? `${span(seconds)} ago` : `in ${span(-seconds)}`;
  };
  const say = (element, text) => { if (element && element.textContent !== text) element.textContent = text; };
  const tick = () => {
    if (document.hidden) return;
    for (const element of document.querySelectorAll("time[data-age]")) say(element, since(Date.parse(element.dateTime)));
    showConnection();
  };
  ready(() => setInterval(tick, 1000));

  // ---- Connection. A live part asks by itself (hx-trigger="every …"). This decides whether it may, and says how it went.
  const LOST_MILLISECONDS = 4000;
  const WAIT_MOST_MILLISECONDS = 15000;
  const WELL_MILLISECONDS = 6000;
  const HAND_MILLISECONDS = 2000;
  let goodAt = now(); // when the newest data came
  let failures = 0;
  let retryAt = 0;
  let lostAt = 0;
  let wellAt = 0;
  let hand = { at: 0, target: null };
  document.addEventListener("pointermove", (event) => { hand = { at: Date.now(), target: event.target }; }, { passive: true });

  const isRead = (part) => part.getBoundingClientRect().top < 0 // scrolled to further rows
    || (!getSelection().isCollapsed && part.contains(getSelection().anchorNode));
  const isHeld = (part) => part.hasAttribute("data-hold") && (isRead(part) || part.contains(document.activeElement)
    || (Date.now() - hand.at < HAND_MILLISECONDS && part.contains(hand.target)));
  const isLive = (source) => source instanceof Element && source.hasAttribute("data-live");
  const askAll = () => document.querySelectorAll("[data-live][hx-get]").forEach((part) => htmx.trigger(part, "every", {}, false));

  const showConnection = () => {
    const state = find("connection");
    const banner = find("banner");
    const part = document.querySelector("[data-live][hx-get]");
    if (!banner) return; // the page is still loading
    const isLost = lostAt > 0;
    state.dataset.state = !part ? "still" : isLost ? "lost" : failures ? "waiting" : "live";
    say(find("connection-text"), !part ? "" : isLost ? ", connection lost" : isHeld(part) ? ", held while you use the list" : ", live");
    if (part) say(find("as-of"), clock(goodAt));
    const isWell = !isLost && wellAt > 0 && now() - wellAt < WELL_MILLISECONDS;
    banner.classList.toggle("shown", isLost || isWell);
    banner.classList.toggle("well", isWell);
    find("try-now").hidden = !isLost;
    say(banner.firstElementChild, isLost ? `Connection lost since ${clock(lostAt)}. The data may be old.`
      : isWell ? `The connection is back since ${clock(wellAt)}.` : "");
  };
  const failed = () => {
    failures += 1;
    retryAt = Date.now() + Math.min(1000 * 2 ** (failures - 1), WAIT_MOST_MILLISECONDS);
    if (!lostAt && (failures > 1 || now() - goodAt > LOST_MILLISECONDS)) lostAt = goodAt;
    showConnection();
  };
  const succeeded = (response) => {
    if (lostAt) wellAt = now();
    goodAt = Date.parse(response.headers.get("date")) || now();
    failures = retryAt = lostAt = 0;
    showConnection();
  };
  document.addEventListener("htmx:config:request", (event) => {
    const part = event.detail.ctx.sourceElement;
    if (isLive(part) && (document.hidden || Date.now() < retryAt || isHeld(part))) event.preventDefault();
  });
  document.addEventListener("htmx:after:request", (event) => {
    const { sourceElement, response } = event.detail.ctx;
    if (!isLive(sourceElement)) return;
    if (response.status === 401) location.reload();
    else if (response.status >= 400) failed();
    else succeeded(response.raw);
  });
  document.addEventListener("htmx:error", (event) => { if (isLive(event.target)) failed(); });
  document.addEventListener("visibilitychange", () => { if (!document.hidden) { tick(); askAll(); } });
  ready(() => {
    showConnection();
    find("try-now").addEventListener("click", () => { retryAt = 0; askAll(); });
  });

  // ---- Keys. They can be switched off in the list of keys.
  let keysOn = stored("keys") !== "off";
  let isGoing = false;
  const rows = () => [...document.querySelectorAll("main .row-link")];
  const step = (by) => {
    const links = rows();
    const at = links.indexOf(document.activeElement);
    const next = links[at < 0 ? (by > 0 ? 0 : links.length - 1) : Math.min(Math.max(at + by, 0), links.length - 1)];
    if (next) { next.focus(); next.scrollIntoView({ block: "nearest" }); }
  };
  const KEYS = {
    "/": () => { find("find")?.focus(); find("find")?.select(); },
    "?": () => find("help").showModal(),
    j: () => step(1),
    k: () => step(-1),
    g: () => { isGoing = true; setTimeout(() => { isGoing = false; }, 1500); },
  };
  const isTyping = (element) => element instanceof Element && element.matches("input:not([type=checkbox], [type=radio]), select, textarea");
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && isTyping(document.activeElement)) document.activeElement.blur();
    if (!keysOn || event.ctrlKey || event.metaKey || event.altKey || isTyping(event.target) || document.querySelector("dialog[open]")) return;
    if (isGoing) {
      isGoing = false;
      const link = [...document.querySelectorAll("a[data-key]")].find((place) => place.dataset.key === event.key);
      if (link) { event.preventDefault(); location.assign(link.href); }
    } else if (Object.hasOwn(KEYS, event.key)) {
      event.preventDefault();
      KEYS[event.key]();
    }
  });
  ready(() => {
    find("help-button").addEventListener("click", () => find("help").showModal());
    find("keys-on").checked = keysOn;
    find("keys-on").addEventListener("change", (event) => {
      keysOn = event.target.checked;
      store("keys", keysOn ? "on" : "off");
    });
  });

  // ---- Clicks: on a row, on a copy button, and outside of an open menu.
  document.addEventListener("click", (event) => {
    const copy = event.target.closest("[data-copy]");
    if (copy) { copyText(copy); return; }
    for (const menu of document.querySelectorAll("details[data-closes][open]")) {
      if (!menu.contains(event.target)) menu.open = false;
    }
    const row = event.target.closest("tbody tr");
    const link = row?.querySelector(".row-link");
    if (!link || event.target.closest("a, button, input, label, select, summary") || String(getSelection())) return;
    if (event.ctrlKey || event.metaKey) window.open(link.href, "_blank", "noopener"); else location.assign(link.href);
  });
  const copyText = async (button) => {
    const text = find(button.dataset.copy);
    try {
      await navigator.clipboard.writeText(text.textContent);
      button.textContent = "Copied";
    } catch { // without the clipboard, select the text for Ctrl-C
      getSelection().selectAllChildren(text);
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  };

  // ---- A question before an action. Without a script, the form is sent at once.
  document.addEventListener("submit", (event) => {
    const form = event.target;
    const submitter = event.submitter;
    if (!form.dataset.confirm || form.dataset.confirmed || submitter?.name === "dryRun") { delete form.dataset.confirmed; return; }
    event.preventDefault();
    const dialog = find("confirm");
    say(find("confirm-text"), form.dataset.confirm);
    say(find("confirm-yes"), submitter?.textContent.trim() || "Yes");
    find("confirm-yes").className = submitter?.className || "primary";
    dialog.returnValue = "no";
    dialog.addEventListener("close", () => {
      if (dialog.returnValue !== "yes") return;
      form.dataset.confirmed = "yes";
      form.requestSubmit(submitter);
    }, { once: true });
    dialog.showModal();
  });

  // ---- Charts by uPlot, on pages that load it. Their data is in the attribute data-plot, which updates replace.
  const plots = new Map(); // element → { chart, drawn }
  const LINES = ["--accent", "--warn", "--ok", "--bad", "--muted"];
  const HEIGHT = 190;
  const optionsOf = (element, { series, unit }) => {
    const colour = (name) => {
      element.style.color = `var(${name})`;
      return getComputedStyle(element).color;
    };
    const axis = { stroke: colour("--muted"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "12px system-ui" };
    const value = (_, number) => (number == null ? "–" : `${number.toLocaleString("en", { maximumFractionDigits: 1 })} ${unit ?? ""}`);
    const options = {
      width: element.clientWidth,
      height: HEIGHT,
      tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC"),
      axes: [{ ...axis, values: (_, splits) => splits.map((seconds) => clock(seconds * 1000)) }, { ...axis, size: 56 }],
      scales: { y: { range: (_, least, most) => [0, Math.max(most, 1) * 1.1] } },
      series: [
        { label: "Time", value: (_, seconds) => (seconds == null ? "–" : clock(seconds * 1000)) },
        ...series.map(({ label }, index) => ({ label, value, width: 1.5, stroke: colour(LINES[index % LINES.length]), points: { show: false } })),
      ],
    };
    element.style.color = "";
    return options;
  };
  const drawPlot = (element, isNew) => {
    const data = JSON.parse(element.dataset.plot);
    const values = [data.times, ...data.series.map((line) => line.values)];
    const known = plots.get(element);
    if (known && !isNew) {
      if (known.drawn !== element.dataset.plot) known.chart.setData(values);
      known.drawn = element.dataset.plot;
      return;
    }
    known?.chart.destroy();
    element.replaceChildren();
    plots.set(element, { chart: new uPlot(optionsOf(element, data), values, element), drawn: element.dataset.plot });
  };
  const drawPlots = (isNew = true) => {
    if (typeof uPlot === "undefined") return;
    for (const element of plots.keys()) if (!element.isConnected) plots.delete(element);
    document.querySelectorAll("[data-plot]").forEach((element) => drawPlot(element, isNew));
  };
  ready(() => drawPlots());
  document.addEventListener("htmx:after:swap", () => drawPlots(false));
  addEventListener("resize", () => {
    for (const [element, { chart }] of plots) chart.setSize({ width: element.clientWidth, height: HEIGHT });
  });
})();
