// Users can take along this call as code in three languages, and all results as CSV or JSON.

import { labelOf, labelsOf, modelOf, predictionsOf } from './draw.js';
import { byId, hasKey } from './http.js';

const LANGUAGES = { curl: shell, Python: python, JavaScript: javascript };

/** Shows the code that sends the file of a job as this page did. A key is never part of it. */
export function showCode(job) {
  const dialog = byId('code');
  const url = new URL('/v1/classify', location.origin);
  const call = { name: job.file.name, imageUrl: job.file.url, model: job.model, hasKey: hasKey(), url };
  if (job.model) call.url.searchParams.set('model', job.model);
  const choices = [...dialog.querySelectorAll('[name=language]')];
  const show = () => {
    const chosen = choices.find((choice) => choice.checked) ?? choices[0];
    byId('code-text').textContent = LANGUAGES[chosen.value](call);
    byId('code-copied').textContent = '';
  };
  for (const choice of choices) choice.onchange = show;
  show();
  dialog.showModal();
}

export function start() {
  byId('code-copy').addEventListener('click', async () => {
    byId('code-copied').textContent = (await copy(byId('code-text'))) ? 'Copied.' : 'Press Ctrl+C to copy the selection.';
  });
}

/** Copies the text of an element. Pages without TLS have no clipboard, so that the text is selected there. */
async function copy(element) {
  try {
    await navigator.clipboard.writeText(element.textContent);
    return true;
  } catch {
    getSelection().selectAllChildren(element);
    return false;
  }
}

function shell({ name, imageUrl, url, hasKey: withKey }) {
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  // curl reads a name with a comma or semicolon as several, unless it is in double quotes.
  const file = `image=@"${name.replace(/["\\]/g, '\\$&')}"`;
  const key = withKey ? '-H "Authorization: Bearer $IMGCLS_KEY" ' : '';
  if (imageUrl) {
    const body = quoted(JSON.stringify({ image_url: imageUrl }));
    return `curl ${key}-H 'Content-Type: application/json' -d ${body} ${quoted(url.href)}`;
  }
  return `curl ${key}-F ${quoted(file)} ${quoted(url.href)}`;
}

function python({ name, imageUrl, url, hasKey: withKey }) {
  const key = withKey ? ', headers={"Authorization": "Bearer " + os.environ["IMGCLS_KEY"]}' : '';
  const post = (what) => `answer = requests.post(${JSON.stringify(url.href)}, ${what}${key})`;
  const call = imageUrl
    ? post(`json={"image_url": ${JSON.stringify(imageUrl)}}`)
    : `with open(${JSON.stringify(name)}, "rb") as image:\n    ${post('files={"image": image}')}`;
  return `${withKey ? 'import os\n\n' : ''}import requests

${call}
answer.raise_for_status()
for prediction in answer.json()["predictions"]:
    print(prediction["label"], prediction["score"])`;
}

function javascript({ name, imageUrl, url, hasKey: withKey }) {
  const headers = [];
  if (imageUrl) headers.push("'Content-Type': 'application/json'");
  if (withKey) headers.push('Authorization: `Bearer ${process.env.IMGCLS_KEY}`');
  const all = headers.length > 0 ? `\n  headers: { ${headers.join(', ')} },` : '';
  const body = imageUrl ? `JSON.stringify({ image_url: ${JSON.stringify(imageUrl)} })` : `await readFile(${JSON.stringify(name)})`;
  return `${imageUrl ? '' : "import { readFile } from 'node:fs/promises';\n\n"}const answer = await fetch(${JSON.stringify(url.href)}, {
  method: 'POST',
  body: ${body},${all}
});
if (!answer.ok) throw new Error(await answer.text());
const { predictions } = await answer.json();
console.log(predictions);`;
}

/** Saves the results of all jobs that have ended. */
export function saveJson(jobs) {
  const results = jobs.filter((job) => job.result).map((job) => job.result);
  save('imgcls-results.json', 'application/json', `${JSON.stringify(results, null, 2)}\n`);
}

export function saveCsv(jobs) {
  const rows = [['file', 'status', 'label', 'score', 'labels', 'model', 'id', 'error']];
  for (const { file, result } of jobs.filter((job) => job.result)) {
    const [best] = predictionsOf(result);
    const labels = labelsOf(result).map(({ label }) => label).join('; ');
    rows.push([file.name, result.status, best ? labelOf(best) : '', best?.score ?? '', labels, modelOf(result), result.id,
      result.error?.message ?? '']);
  }
  save('imgcls-results.csv', 'text/csv', rows.map((row) => row.map(cell).join(',')).join('\r\n') + '\r\n');
}

/** One cell of a CSV file. A text that a spreadsheet would read as a formula begins with an apostrophe. */
function cell(value) {
  let text = String(value);
  if (typeof value === 'string' && /^[=+\-@\t\r]/.test(text)) text = `'${text}`;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function save(name, type, text) {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
