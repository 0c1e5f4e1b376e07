// Drives a headless Chromium by its own protocol, through a pipe: nothing has to be installed beside it and Node.

import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer } from 'node:http';
import { readFile, writeFile } from 'node:fs/promises';
import { extname, join, normalize } from 'node:path';
import { tmpdir } from 'node:os';

const TYPES = {
  '.html': 'text/html', '.js': 'text/javascript', '.mjs': 'text/javascript', '.css': 'text/css', '.wasm': 'application/wasm',
  '.json': 'application/json', '.svg': 'image/svg+xml',
};

/** Serves folders by the first part of the path; gives the address, what was asked for, and an end. */
export async function serve(folders) {
  const asked = [];
  const server = createServer(async (request, response) => {
    const path = normalize(decodeURIComponent(new URL(request.url, 'http://x').pathname));
    asked.push(path);
    const [, first, ...rest] = path.split('/');
    const file = first && folders[first] ? join(folders[first], ...rest) : join(folders[''] ?? '/nowhere', path);
    try {
      const body = await readFile(file.endsWith('/') ? file + 'index.html' : file);
      response.writeHead(200, { 'content-type': TYPES[extname(file) || '.html'] ?? 'application/octet-stream' });
      response.end(body);
    } catch {
      response.writeHead(404).end();
    }
  });
  await new Promise((done) => server.listen(0, '127.0.0.1', done));
  return { address: `http://127.0.0.1:${server.address().port}`, asked, end: () => server.close() };
}

/** A browser with SwiftShader's adapter, its profile in a folder that goes with it. */
export class Browser {
  #calls = new Map();
  #next = 1;
  #listeners = [];

  static async start({ flags = [] } = {}) {
    const browser = new Browser();
    browser.folder = mkdtempSync(join(tmpdir(), 'esmerge-web-'));
    browser.process = spawn(process.env.CHROMIUM ?? 'chromium', [
      '--headless=new', '--no-sandbox', '--disable-dev-shm-usage', '--enable-unsafe-webgpu', '--use-webgpu-adapter=swiftshader',
      '--remote-debugging-pipe', `--user-data-dir=${browser.folder}`, '--no-first-run', '--disable-background-networking',
      '--disable-component-update', ...flags, 'about:blank',
    ], { stdio: ['ignore', 'ignore', 'ignore', 'pipe', 'pipe'] });
    const [, , , input, output] = browser.process.stdio;
    browser.input = input;
    let rest = '';
    output.setEncoding('utf8');
    output.on('data', (chunk) => {
      const messages = (rest + chunk).split('\0');
      rest = messages.pop();
      messages.forEach((text) => browser.#hear(JSON.parse(text)));
    });
    return browser;
  }

  #hear(message) {
    const call = this.#calls.get(message.id);
    if (call) {
      this.#calls.delete(message.id);
      message.error ? call.fail(new Error(`${call.method}: ${message.error.message}`)) : call.done(message.result);
    } else {
      this.#listeners.forEach((listener) => listener(message));
    }
  }

  send(method, params = {}, sessionId = undefined) {
    const id = this.#next++;
    this.input.write(JSON.stringify({ id, method, params, sessionId }) + '\0');
    return new Promise((done, fail) => this.#calls.set(id, { method, done, fail }));
  }

  listen(listener) {
    this.#listeners.push(listener);
  }

  /** A page of its own, which tells what is written to its console. */
  async open(url, { width = 1280, height = 900, dark = false, downloads = undefined } = {}) {
    const { targetId } = await this.send('Target.createTarget', { url: 'about:blank' });
    const { sessionId } = await this.send('Target.attachToTarget', { targetId, flatten: true });
    const page = new Page(this, sessionId, targetId);
    await page.send('Page.enable');
    await page.send('Runtime.enable');
    await page.send('Network.enable');
    await page.send('Accessibility.enable');
    if (downloads) {
      await this.send('Browser.setDownloadBehavior', { behavior: 'allow', downloadPath: downloads, eventsEnabled: true });
    }
    await page.look({ width, height, dark });
    await page.go(url);
    return page;
  }

  async end() {
    await this.send('Browser.close').catch(() => {});
    const ended = new Promise((done) => this.process.once('exit', done));
    const killed = setTimeout(() => this.process.kill('SIGKILL'), 5000);
    await ended;
    clearTimeout(killed);
    rmSync(this.folder, { recursive: true, force: true, maxRetries: 5 });
  }
}

class Page {
  said = [];

  constructor(browser, sessionId, targetId) {
    Object.assign(this, { browser, sessionId, targetId });
    browser.listen(({ method, params, sessionId: from }) => {
      if (from !== sessionId) return;
      if (method === 'Runtime.consoleAPICalled') this.said.push(params.args.map((a) => a.value ?? a.description).join(' '));
      if (method === 'Runtime.exceptionThrown') {
        this.said.push(`uncaught: ${params.exceptionDetails.exception?.description ?? params.exceptionDetails.text}`);
      }
    });
  }

  send(method, params) {
    return this.browser.send(method, params, this.sessionId);
  }

  async look({ width, height = 900, dark = false }) {
    await this.send('Emulation.setDeviceMetricsOverride', { width, height, deviceScaleFactor: 1, mobile: width < 600 });
    const features = [{ name: 'prefers-color-scheme', value: dark ? 'dark' : 'light' }];
    await this.send('Emulation.setEmulatedMedia', { features });
  }

  async go(url) {
    const loaded = new Promise((done) => {
      this.browser.listen(({ method, sessionId }) => sessionId === this.sessionId && method === 'Page.loadEventFired' && done());
    });
    await this.send('Page.navigate', { url });
    await loaded;
  }

  /** The value of an expression, awaited. */
  async value(expression) {
    const { result, exceptionDetails } = await this.send('Runtime.evaluate', { expression, awaitPromise: true, returnByValue: true });
    if (exceptionDetails) throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.text);
    return result.value;
  }

  /** Waits until an expression is true. */
  async until(expression, seconds = 60, what = expression) {
    const end = Date.now() + 1000 * seconds;
    while (!(await this.value(expression))) {
      const uncaught = this.said.find((line) => line.startsWith('uncaught'));
      if (uncaught) throw new Error(`${what}: ${uncaught}`);
      if (Date.now() > end) throw new Error(`not within ${seconds} s: ${what}; the page said ${this.said.slice(-5).join(' | ')}`);
      await new Promise((done) => setTimeout(done, 100));
    }
  }

  /** Gives files to an input of a form. */
  async files(selector, paths) {
    const { root } = await this.send('DOM.getDocument');
    const { nodeId } = await this.send('DOM.querySelector', { nodeId: root.nodeId, selector });
    await this.send('DOM.setFileInputFiles', { nodeId, files: paths });
  }

  /** A picture of the whole page. */
  async picture(path) {
    const { data } = await this.send('Page.captureScreenshot', { captureBeyondViewport: true, format: 'png' });
    await writeFile(path, Buffer.from(data, 'base64'));
  }

  async close() {
    await this.browser.send('Target.closeTarget', { targetId: this.targetId });
  }
}

/**
 * Runs tests one after the other and ends with their count. Each is `[name, test, { slow }]`; the argument is a part of a name, or `--all`,
 * without which the slow ones are left out.
 */
export async function run(tests) {
  const [wanted] = process.argv.slice(2);
  const isWanted = ([name, , { slow } = {}]) => (wanted === undefined ? !slow : wanted === '--all' || name.includes(wanted));
  let failed = 0;
  let passed = 0;
  for (const [name, test] of tests.filter(isWanted)) {
    const started = Date.now();
    try {
      const note = await test();
      passed += 1;
      console.log(`ok   ${name} (${((Date.now() - started) / 1000).toFixed(1)} s)${note ? `: ${note}` : ''}`);
    } catch (error) {
      failed += 1;
      console.log(`FAIL ${name}: ${error.stack ?? error}`);
    }
  }
  console.log(`${passed} passed, ${failed} failed`);
  process.exitCode = failed || passed === 0 ? 1 : 0;
}
