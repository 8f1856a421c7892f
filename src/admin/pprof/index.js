'use strict';
// Shows how a capture goes on, instead of a page that loads for as long as it takes; and lets only captures of one
// kind be compared. The server notices when a request is given up and ends its capture.
const $ = id => document.getElementById(id);
let giveUp = null, timer = 0;

function say(text, failed) {
  $('progress').hidden = false;
  $('progress').classList.toggle('failed', failed);
  $('doing').textContent = text;
  $('bar').hidden = failed;
  $('stop').textContent = failed ? 'Close' : 'Stop';
}

function end() {
  clearInterval(timer);
  if (giveUp) giveUp.abort();
  giveUp = null;
}

async function capture(link) {
  end();
  const seconds = Number(link.dataset.seconds), begun = performance.now();
  const what = `${link.closest('tr').cells[0].textContent}, ${link.textContent}`;
  const mine = giveUp = new AbortController();
  const tell = () => {
    const gone = (performance.now() - begun) / 1000, left = Math.ceil(seconds - gone);
    if (left > 0) {
      $('bar').max = seconds;
      $('bar').value = gone;
      say(`${what}: ${left} s left`, false);
    } else {
      $('bar').removeAttribute('value');
      say(`${what}: looking up names…`, false);
    }
  };
  tell();
  timer = setInterval(tell, 200);
  try {
    const answer = await fetch(link.href, { signal: mine.signal, headers: { Accept: 'text/html' } });
    if (!answer.ok) throw new Error((await answer.text()).trim() || `The server answered ${answer.status}.`);
    const id = answer.headers.get('X-Koltso-Capture');
    if (!id) throw new Error('The answer has no capture.');
    // The server keeps it: it is shown under its own address, which can be opened again.
    const shown = `captures?id=${id}&format=${link.dataset.form}`;
    clearInterval(timer);
    giveUp = null;
    mine.abort();
    if (link.dataset.form === 'pprof') { $('progress').hidden = true; }
    location.href = shown;
  } catch (error) {
    if (giveUp !== mine) return;
    clearInterval(timer);
    giveUp = null;
    say(`${what}: ${error instanceof TypeError ? 'The server cannot be reached.' : error.message}`, true);
  }
}

for (const link of document.querySelectorAll('a[data-seconds]')) {
  link.addEventListener('click', event => {
    if (event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
    event.preventDefault();
    capture(link);
  });
}
$('stop').addEventListener('click', () => { end(); $('progress').hidden = true; });
addEventListener('pageshow', event => { if (event.persisted) location.reload(); });

const chosen = name => document.querySelector(`input[name="${name}"]:checked`);
function judge() {
  const [base, of] = [chosen('base'), chosen('new')].map(box => box && box.closest('tr').dataset.event);
  for (const row of document.querySelectorAll('#kept tr[data-event]')) row.classList.toggle('other', Boolean(base) && row.dataset.event !== base);
  const same = base && of && chosen('base').value === chosen('new').value;
  $('mismatch').textContent = base && of && base !== of ? 'These are of different kinds: choose two of one.' : same ? 'These are the same capture.' : '';
  $('compare').disabled = !base || !of || base !== of || same;
}
for (const box of document.querySelectorAll('#kept input')) box.addEventListener('change', judge);
judge();
