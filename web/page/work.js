// The worker, as functions that can be awaited. One that died is replaced at the next call, and says what it died of.

export class Work {
  #worker;
  #asked = new Map();
  #next = 1;
  /** Hears how a merge goes on. */
  listener = () => {};
  /** Called with a new worker, which knows nothing yet. */
  renewed = async () => {};
  #renewing;

  #start() {
    this.#worker = new Worker('worker.js', { type: 'module' });
    this.#worker.onmessage = ({ data }) => {
      if (data.event) return this.listener(data);
      if (data.dead !== undefined) return this.stop(new Error(`a defect of esmerge ended the work: ${data.dead}`));
      const asked = this.#asked.get(data.id);
      this.#asked.delete(data.id);
      data.error === undefined ? asked?.done(data.value) : asked?.fail(new Error(data.error));
    };
    this.#worker.onerror = (event) => this.stop(new Error(event.message ?? 'the worker could not be started'));
  }

  #send(call, values) {
    const id = this.#next++;
    return new Promise((done, fail) => {
      this.#asked.set(id, { done, fail });
      this.#worker.postMessage({ id, call, with: values });
    });
  }

  async call(call, ...values) {
    if (!this.#worker) {
      this.#start();
      this.#renewing = this.renewed((...inner) => this.#send(inner[0], inner.slice(1)));
    }
    await this.#renewing;
    return this.#send(call, values);
  }

  /** The same with an answer in JSON. */
  async json(call, ...values) {
    return JSON.parse(await this.call(call, ...values));
  }

  /** Ends the worker; what was asked of it fails. */
  stop(why) {
    this.#worker?.terminate();
    this.#worker = undefined;
    const asked = [...this.#asked.values()];
    this.#asked.clear();
    asked.forEach(({ fail }) => fail(why));
  }
}

/** Fails when a promise takes longer. */
export function within(seconds, promise, work) {
  let end;
  const late = new Promise((_, fail) => {
    end = setTimeout(() => {
      const why = new Error(`no answer within ${seconds} s`);
      work.stop(why);
      fail(why);
    }, 1000 * seconds);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(end));
}
