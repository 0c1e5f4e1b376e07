// All tests of what runs in a browser.

import { tests as big } from './big.mjs';
import { run } from './browser.mjs';
import { tests as embed } from './embed.mjs';
import { tests as looks } from './looks.mjs';
import { tests as page } from './page.mjs';
import { tests as suite } from './suite.mjs';

await run([...embed, ...suite, ...page, ...looks, ...big]);
