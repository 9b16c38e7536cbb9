// Light or dark: as the system has it, until the button is pressed.

function theme(dark) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  const button = document.getElementById("theme");
  button.hidden = false;
  button.setAttribute("aria-pressed", String(dark));
  button.textContent = dark ? "Light" : "Dark";
}

const system = window.matchMedia("(prefers-color-scheme: dark)");
const follow = () => theme(system.matches);
follow();
system.addEventListener("change", follow);
document.getElementById("theme").addEventListener("click", () => {
  system.removeEventListener("change", follow);
  theme(document.documentElement.dataset.theme !== "dark");
});
