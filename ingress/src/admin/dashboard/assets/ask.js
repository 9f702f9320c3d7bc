// Asks the daemon. An answer that is a refusal has words of its own; silence is an Error.

// Without the user and password that may stand in the address bar: fetch refuses such addresses.
const BASE = new URL("dashboard/api/", location.origin + location.pathname);

export class Refused extends Error {}

export async function ask(what, params = {}) {
  const url = new URL(what, BASE);
  Object.entries(params).forEach(([key, value]) => { if (value) url.searchParams.set(key, value); });
  const response = await fetch(url, { cache: "no-store", signal: AbortSignal.timeout(15000) });
  return answer(response);
}

// Asks for a change. `token` came with the overview; a page of somebody else cannot read it.
export async function order(path, body, token) {
  const headers = { "Content-Type": "application/json", "X-Ingress-Token": token };
  const signal = AbortSignal.timeout(15000);
  return answer(await fetch(new URL(path, BASE), { method: "POST", body: JSON.stringify(body), headers, signal }));
}

async function answer(response) {
  if (response.ok) return response.json();
  if (response.status === 401) throw new Refused("The password is not accepted any more: load the page again.");
  const body = await response.json().catch(() => ({}));
  if (body.error) throw new Refused(body.error);
  throw new Error(`answer ${response.status}`);
}
