// What a reader would see of the report; evaluated in its page.
const rgb = (text) => (text.match(/[\d.]+/g) || []).map(Number);
const light = ([r, g, b]) => {
  const part = (value) => ((value /= 255) <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
  return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
};
const behind = (element) => {
  for (; element; element = element.parentElement) {
    const colour = rgb(getComputedStyle(element).backgroundColor);
    if (colour.length === 3 || colour[3] > 0.99) return colour;
  }
  return [255, 255, 255];
};
const contrast = (element) => {
  const style = getComputedStyle(element);
  const front = light(rgb(element instanceof SVGElement ? style.fill : style.color));
  const back = light(behind(element));
  return (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
};
const own = (element) => [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
const visible = (element) => element.getBoundingClientRect().width > 0;
const texts = [...document.body.querySelectorAll("*")].filter((element) => own(element) && visible(element));
const charts = [...document.querySelectorAll("figure .chart")].filter(visible);
return {
  charts: charts.map((chart) => {
    const { width, height } = chart.querySelector("svg").getBoundingClientRect();
    const drawn = chart.querySelectorAll("path, text, rect, line, polyline").length;
    const named = chart.getAttribute("role") === "img" && chart.getAttribute("aria-label").length > 10;
    return { width, height, drawn, named };
  }),
  faint: texts.filter((element) => contrast(element) < 4.5).map((element) => `${element.tagName}: ${element.textContent}`),
  overflow: Math.max(0, document.documentElement.scrollWidth - innerWidth),
  scripts: document.scripts.length,
};
