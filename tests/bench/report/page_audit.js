// What a reader with low vision, a keyboard or a screen reader would stumble over on the page that is open.
// Every function returns findings in words; an empty list is a good page.

const say = (element) => element.outerHTML.replace(/\s+/g, " ").slice(0, 90);

const parts = (text) => {
  const [red, green, blue, alpha = 1] = text.match(/[\d.]+/g).map(Number);
  return [red, green, blue, alpha];
};
const over = (top, below) => below.slice(0, 3).map((low, i) => low + (top[i] - low) * top[3]).concat(1);
const luminance = (colour) => {
  const [red, green, blue] = colour.slice(0, 3).map((value) => {
    const share = value / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
};
const backdrop = (element) => {
  if (!element) return [255, 255, 255, 1];
  const own = parts(getComputedStyle(element).backgroundColor);
  return own[3] === 1 ? own : over(own, backdrop(element.parentElement));
};

// WCAG 2.2, 1.4.3: text against what is behind it, at least 4.5 to 1
function lowContrast(selector) {
  const found = new Map();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || !element.checkVisibility() || element.closest("option, script, style, noscript")) continue;
    if (!element.matches(selector)) continue;
    const style = getComputedStyle(element), back = backdrop(element);
    const front = over(parts(element instanceof SVGElement ? style.fill : style.color), back);
    const [dark, light] = [luminance(front), luminance(back)].sort((a, b) => a - b);
    const ratio = (light + 0.05) / (dark + 0.05);
    if (ratio < 4.5) found.set(`${front.map(Math.round)} on ${back.map(Math.round)}: ${ratio.toFixed(2)}`, say(element));
  }
  return Array.from(found, ([what, where]) => `${what}, first in ${where}`);
}

function structureFaults() {
  const found = [], all = (selector) => Array.from(document.querySelectorAll(selector));
  const levels = all("h1, h2, h3, h4, h5, h6").map((heading) => [Number(heading.tagName[1]), heading]);
  levels.forEach(([level, heading], i) => {
    if (level > (i ? levels[i - 1][0] : 0) + 1) found.push(`heading skips a level: ${say(heading)}`);
    if (!heading.textContent.trim()) found.push(`empty heading: ${say(heading)}`);
  });
  for (const [selector, wanted] of [["h1", 1], ["main", 1], ["header", 1], ["title", 1]]) {
    const count = selector === "title" ? document.head.querySelectorAll("title").length : all(selector).length;
    if (count !== wanted) found.push(`${count} of <${selector}>, expected ${wanted}`);
  }
  const ids = all("[id]").map((element) => element.id);
  ids.filter((id, i) => ids.indexOf(id) !== i).forEach((id) => found.push(`id used twice: ${id}`));
  for (const attribute of ["aria-labelledby", "aria-describedby", "aria-controls", "for"]) {
    for (const element of all(`[${attribute}]`)) {
      for (const id of element.getAttribute(attribute).split(/\s+/)) {
        if (!document.getElementById(id)) found.push(`${attribute} leads nowhere: ${say(element)}`);
      }
    }
  }
  all("a[href^='#']").filter((link) => !document.getElementById(link.hash.slice(1))).forEach((link) => found.push(`dead link: ${say(link)}`));
  all("table").filter((table) => !table.querySelector("thead th[scope=col]")).forEach((table) => found.push(`no column headers: ${say(table)}`));
  all("th:not([scope])").forEach((cell) => found.push(`header of nothing: ${say(cell)}`));
  all("[tabindex]").filter((element) => element.tabIndex > 0).forEach((element) => found.push(`jumps the tab order: ${say(element)}`));
  all("[aria-hidden=true] :is(a, button, input, select)").forEach((element) => found.push(`focus on the unseen: ${say(element)}`));
  all("ul > :not(li), ol > :not(li)").forEach((element) => found.push(`not an item of its list: ${say(element)}`));
  all("input[type=radio]").filter((radio) => !radio.closest("fieldset, [role=group], [role=radiogroup]")).forEach((radio) => found.push(`choice without a question: ${say(radio)}`));
  const sized = document.querySelector("meta[name=viewport]").content;
  if (/user-scalable\s*=\s*(no|0)|maximum-scale/.test(sized)) found.push(`cannot be enlarged: ${sized}`);
  return found;
}

const focused = [];
function watchFocus() {
  document.addEventListener("focusin", ({ target }) => {
    const shown = Number(getComputedStyle(target).opacity) === 0 ? target.labels[0] : target; // a radio shows in its label
    const { outlineStyle, outlineWidth } = getComputedStyle(shown);
    focused.push([target, outlineStyle !== "none" && parseFloat(outlineWidth) >= 2]);
  });
}

// radios of a group are one stop, as the keyboard moves between them by arrow
function stops() {
  return Array.from(document.querySelectorAll("a[href], button, input, select, summary, [tabindex='0']"))
    .filter((element) => element.checkVisibility() && !element.disabled && !(element.type === "radio" && !element.checked));
}

function focusFaults() {
  const again = focused.findIndex(([target], i) => focused.slice(0, i).some(([other]) => other === target));
  const round = again < 0 ? focused : focused.slice(0, again);
  const order = round.map(([target]) => target), found = [];
  stops().filter((stop) => !order.includes(stop)).forEach((stop) => found.push(`never reached: ${say(stop)}`));
  round.filter(([, visible]) => !visible).forEach(([target]) => found.push(`focus not visible: ${say(target)}`));
  order.slice(1).forEach((target, i) => {
    if (order[i].compareDocumentPosition(target) & Node.DOCUMENT_POSITION_PRECEDING) found.push(`out of order: ${say(target)}`);
  });
  return found;
}
