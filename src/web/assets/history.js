// The results that this browser has seen, kept in its own storage until the user forgets them. The service keeps the jobs
// themselves; an entry has the id, the name, the best label and a small copy of the image.

const ITEM = 'imgcls-history';
const MOST = 50;
const WRITE_AFTER_MS = 1_000; // many results are written together

/** Entries that are not in the storage yet, newest first. Each has a function `copy` instead of the copy itself. */
let unwritten = [];
let timer = 0;

window.addEventListener('pagehide', write);

/** The entries, newest first. */
export function entries() {
  write();
  return stored();
}

/** Adds an entry in front, or replaces the one with its id. `copy` is called when the entry is written. */
export function remember(entry) {
  const at = unwritten.findIndex((other) => other.id === entry.id);
  if (at >= 0) unwritten[at] = entry;
  else unwritten.unshift(entry);
  unwritten.splice(MOST);
  timer ||= setTimeout(write, WRITE_AFTER_MS);
}

export function forget() {
  unwritten = [];
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
  if (unwritten.length === 0) return;
  const added = unwritten.map((entry) => ({ ...entry, copy: entry.copy() }));
  unwritten = [];
  const replaced = new Map(added.map((entry) => [entry.id, entry]));
  const old = stored().map((entry) => {
    const changed = replaced.get(entry.id);
    replaced.delete(entry.id);
    return changed ?? entry;
  });
  let kept = [...replaced.values(), ...old].slice(0, MOST);
  while (kept.length > 0) {
    try {
      localStorage.setItem(ITEM, JSON.stringify(kept));
      return;
    } catch {
      kept = kept.slice(0, Math.floor(kept.length / 2));
    }
  }
}
