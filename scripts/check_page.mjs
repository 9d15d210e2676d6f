// Tries the page of a running `bitnet serve` in a real browser, with a model that has something to say: a
// message, a stop, an edit, a retry, a reload, an export, a narrow window, and answers that would like to
// be scripts.
//
//   npm install playwright-core && node scripts/check_page.mjs http://127.0.0.1:8080 [chromium] [screenshots/]
//
// Ends with 1 if anything is wrong. The chromium is Debian's, /usr/bin/chromium, unless named.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

// From the folder where it is installed, which need not be that of this file.
const { chromium } = createRequire(process.cwd() + "/")("playwright-core");
const [base, executablePath = "/usr/bin/chromium", shots] = process.argv.slice(2);
let failed = 0;
const check = (name, holds) => {
  console.log((holds ? "ok    " : "WRONG ") + name);
  failed += holds ? 0 : 1;
};

const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
const page = await browser.newPage({ acceptDownloads: true });
const problems = [], asked = [];
page.on("pageerror", error => problems.push(String(error)));
page.on("dialog", dialog => { problems.push("a dialog"); dialog.dismiss(); });
page.on("request", request => asked.push(request.url()));
const say = async text => { await page.fill("#say", text); await page.press("#say", "Enter"); };
const done = () => page.waitForSelector("#stop", { state: "hidden", timeout: 120000 });
const shot = name => shots ? page.screenshot({ path: `${shots}/${name}.png` }) : null;

await page.goto(base);
await page.click("#open-settings");
await page.fill("#max_tokens", "24");
// The model must say something; a greedy answer is the same each time.
await page.fill("#temperature", "0");
await page.fill("#system", "Answer in one sentence.");
await page.keyboard.press("Control+,");
check("settings close with the keyboard", await page.isHidden("#settings"));
await say("Where is the key?");
await done();
check("a message is answered", (await page.locator("article.assistant").first().innerText()).length > 0);
check("speed and context are shown", /\d/.test(await page.innerText("#speed")) && /context: \d+ of \d+/.test(await page.innerText("#fill")));
await shot("answer");

await page.click("article.assistant button:has-text('Retry')");
await done();
check("retry makes one answer", await page.locator("article.assistant").count() === 1);
await page.click("article.user button:has-text('Edit')");
check("an edited turn comes back to the field", await page.inputValue("#say") === "Where is the key?");
await say("Where is the box?");
await done();
check("the edited turn replaced the old", await page.locator("article.user").count() === 1);

const [download] = await Promise.all([page.waitForEvent("download"), page.click("#export")]);
const lines = readFileSync(await download.path(), "utf8").trim().split("\n");
const roles = JSON.parse(lines[0]).messages.map(message => message.role).join(" ");
check("the export is a line of messages", lines.length === 1 && roles === "system user assistant");

await page.reload();
check("a reload keeps the conversation", await page.locator("article").count() === 2);

// A stream that says what a test says, slowly: to be stopped, and hostile.
const stream = text => async route => {
  const chunk = JSON.stringify({ choices: [{ index: 0, delta: { content: text }, finish_reason: null }] });
  await route.fulfill({ contentType: "text/event-stream", body: `data: ${chunk}\n\ndata: [DONE]\n\n` });
};
const hostile = "<script>window.bad = 1</script><img src=x onerror='window.bad = 2'> [x](javascript:window.bad=3) "
  + "[y](https://example.com) **bold** `<b>code</b>`\n\n```html\n<script>window.bad = 4</script>\n```\n<iframe srcdoc='<script>top.bad=5</script>'></iframe>";
await page.route("**/v1/chat/completions", stream(hostile));
await say("Be hostile");
await done();
const last = page.locator("article.assistant").last();
check("no script of the model runs", await page.evaluate(() => window.bad === undefined));
check("its markup is text", (await last.innerText()).includes("<script>window.bad = 1</script>") && await last.locator("script, img, iframe").count() === 0);
const links = await last.locator("a").evaluateAll(all => all.map(link => link.protocol));
check("only web addresses become links", links.join() === "https:");
check("Markdown is rendered", await last.locator("strong").count() === 1 && await last.locator("pre code").count() === 1);
await shot("hostile");
await page.unroute("**/v1/chat/completions");

await page.route("**/v1/chat/completions", () => {});
await say("Never answered");
await page.waitForSelector("#stop:not([hidden])");
await page.keyboard.press("Escape");
await done();
check("Escape stops an answer", await page.isVisible("#send"));
await page.unroute("**/v1/chat/completions");

await page.route("**/v1/chat/completions", route => route.fulfill({ status: 429, contentType: "application/json", body: '{"error":{"message":"too many"}}' }));
await say("Refused");
await page.waitForSelector("article.error");
check("an error is shown", (await page.innerText("article.error")) === "too many");
await page.unroute("**/v1/chat/completions");

await page.keyboard.press("Alt+n");
check("a new conversation is empty", await page.locator("article").count() === 0);
check("both are in the list", await page.locator("#list button").count() === 3);
await page.setViewportSize({ width: 360, height: 640 });
const width = await page.evaluate(() => document.documentElement.scrollWidth);
check("a phone's width is enough", width <= 360);
await shot("phone");
await page.emulateMedia({ colorScheme: "dark" });
const dark = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
check("it is dark on request", dark === "rgb(21, 24, 28)");
await shot("dark");
check("nobody else is asked", asked.every(url => url.startsWith(base) || url.startsWith("data:") || url.startsWith("blob:")));
check("no error in the page", problems.length === 0);
if (problems.length) console.log(problems);
await browser.close();
process.exit(failed ? 1 : 0);
