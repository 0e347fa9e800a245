// The results that this browser has seen, kept in its own storage until the user forgets them. The service keeps the jobs
// themselves; an entry has the id, the name, the best label and a small copy of the image.

const ITEM = 'imgcls-history';
const MOST = 50;
const WRITE_AFTER_MS = 1_000; // many results are written together

/** Entries that are not in the storage yet, newest first. Each has a function `copy` instead of the copy itself. */
let unwritten = [];
/** Such functions for entries that may be in the storage already, by id. */
const copies = new Map();
let timer = 0;

window.addEventListener('pagehide', write);

/** The entries, newest first. */
export function entries() {
  write();
  return stored();
}

/** Adds an entry in front. `copy` is called when the entry is written. */
export function remember(entry) {
  unwritten.unshift(entry);
  unwritten.splice(MOST);
  timer ||= setTimeout(write, WRITE_AFTER_MS);
}

/** The image of an entry has a copy now. An entry that was forgotten does not come back. */
export function addCopy(id, copy) {
  copies.set(id, copy);
  timer ||= setTimeout(write, WRITE_AFTER_MS);
}

export function forget() {
  unwritten = [];
  copies.clear();
  try {
    localStorage.removeItem(ITEM);
  } catch {
    // There is no storage, and so nothing in it.
  }
}

/** Another program may have written the storage, so each entry is checked. */
function stored() {
  try {
    const found = JSON.parse(localStorage.getItem(ITEM) ?? '[]');
    const isEntry = (entry) => typeof entry?.id === 'string' && typeof entry.name === 'string' && typeof entry.label === 'string';
    return Array.isArray(found) ? found.filter(isEntry).slice(0, MOST) : [];
  } catch {
    return [];
  }
}

/** Writes the new entries. When the storage is full, the older half is dropped until the rest fits. */
function write() {
  clearTimeout(timer);
  timer = 0;
  if (unwritten.length === 0 && copies.size === 0) return;
  const added = unwritten.map((entry) => ({ ...entry, copy: entry.copy() }));
  const ids = new Set(added.map((entry) => entry.id));
  const old = stored().filter((entry) => !ids.has(entry.id));
  for (const entry of old) entry.copy = copies.get(entry.id)?.() ?? entry.copy;
  unwritten = [];
  copies.clear();
  let kept = [...added, ...old].slice(0, MOST);
  while (kept.length > 0) {
    try {
      localStorage.setItem(ITEM, JSON.stringify(kept));
      return;
    } catch {
      kept = kept.slice(0, Math.floor(kept.length / 2));
    }
  }
}
