import init, { names, run } from './esmerge_web_suite.js';

let panic;
console.error = (...words) => (panic ??= words.join(' ').split('\n\nStack')[0]);
const fail = (event) => postMessage({ error: panic ?? event.message ?? String(event.reason) });
addEventListener('error', fail);
addEventListener('unhandledrejection', fail);

const ready = init();
onmessage = async ({ data }) => {
  await ready;
  if (data.run === undefined) return postMessage({ names: names() });
  try {
    await run(data.run);
    postMessage({});
  } catch (error) {
    postMessage({ error: panic ?? String(error) });
  }
};
