// The http module of Node.js, with an agent that keeps connections.
import http from 'node:http';
import { serve } from './driver.mjs';

const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });

serve(({ method, url, chunked, body, headers }) => new Promise((resolve, reject) => {
  const { host, hostname, port } = new URL(url);
  const path = url.slice(`http://${host}`.length).replace(/^\/\*$/, '*');
  const length = chunked || body === null ? {} : { 'Content-Length': body.length };
  const framing = chunked ? { 'Transfer-Encoding': 'chunked' } : length;
  const request = http.request({ agent, hostname, port, path, method, headers: { ...headers, ...framing }, timeout: 60000 });
  request.on('timeout', () => request.destroy(new Error('60 s without an answer')));
  request.on('error', reject);
  request.on('response', (response) => {
    const pieces = [];
    response.on('data', (piece) => pieces.push(piece));
    response.on('error', reject);
    response.on('end', () => resolve([response.statusCode, Object.entries(response.headers), Buffer.concat(pieces)]));
  });
  if (headers.Expect) {
    request.on('continue', () => request.end(body));
    request.flushHeaders();
    return;
  }
  for (let at = 0; chunked && at < body.length; at += 100000) request.write(body.subarray(at, at + 100000));
  request.end(chunked ? undefined : body);
}));
