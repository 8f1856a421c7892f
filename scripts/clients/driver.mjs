// What the client programs in JavaScript share; driver.py describes the lines.
import fs from 'node:fs';
import readline from 'node:readline';

/** Answers each line by `send`, which resolves to the status, pairs of names and values, and the body. */
export async function serve(send) {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const [method, url, version, framing, bodyFile, out, ...lines] = line.split('\t');
    const headers = Object.fromEntries(lines.map((text) => text.split(/: (.*)/s).slice(0, 2)));
    const body = bodyFile === '-' ? null : fs.readFileSync(bodyFile);
    let answer;
    try {
      const [status, pairs, given] = await send({ method, url, version, chunked: framing === 'chunked', body, headers });
      fs.writeFileSync(out, given);
      answer = [status, ...pairs.map(([name, value]) => `${name}: ${value}`)];
    } catch (error) {
      answer = ['FAILED', `${error} ${error.cause ?? ''}`.replace(/[\t\n]/g, ' ')];
    }
    process.stdout.write(`${answer.join('\t')}\n`);
  }
  process.exit(0);
}
