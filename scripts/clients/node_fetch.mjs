// fetch of Node.js.
import { serve } from './driver.mjs';

function stream(body) {
  let at = 0;
  return new ReadableStream({
    pull(controller) {
      if (at >= body.length) return controller.close();
      controller.enqueue(body.subarray(at, at + 100000));
      at += 100000;
    },
  });
}

serve(async ({ method, url, chunked, body, headers }) => {
  const given = body === null ? {} : chunked ? { body: stream(body), duplex: 'half' } : { body };
  const response = await fetch(url, { method, headers, signal: AbortSignal.timeout(60000), ...given });
  return [response.status, [...response.headers], Buffer.from(await response.arrayBuffer())];
});
