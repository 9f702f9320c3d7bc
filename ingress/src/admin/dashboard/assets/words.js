// What the daemon's words mean, in a line. docs/metrics.md has them at length.
export const WORDS = {
  // why a connection is relayed
  kernel_off: "kernel path is off",
  policy: "the pool says never",
  rtt: "the client is further away than the pool allows",
  family: "IPv6 at one end, IPv4 at the other",
  local: "loopback, or a backend on this host",
  device: "a device without our programs",
  unseen: "handshake not seen, or NAT between",
  options: "TCP options differ",
  mtu: "segments do not fit the other leg",
  half_closed: "one side had closed",
  out_of_order: "data out of order",
  server_first: "the backend spoke first",
  window: "beyond the backend's window",
  full: "all kernel slots taken",
  ports: "no free source port",
  error: "a system call failed",
  when_idle: "not quiet yet when it began",
  route: "routing rules lead spliced packets another way",
  // why one is refused
  unknown_sni: "no route for this name",
  no_routes_yet: "a provider has not spoken yet",
  no_sni: "no server name",
  not_tls: "not TLS",
  hello_timeout: "ClientHello took too long",
  hello_too_large: "ClientHello above 64 KiB",
  hello_eof: "client left before its ClientHello",
  listener_limit: "listener is full",
  source_limit: "too many from one client",
  global_limit: "limit over all listeners",
  bad_proxy_header: "PROXY header invalid",
  untrusted_proxy_header: "PROXY header from a stranger",
  no_backend: "no backend is up",
  denied: "client is denied",
  connect_failed: "no backend took it",
  draining: "daemon was stopping",
  // how one ends
  client_reset: "client reset it",
  closed: "closed in order",
  backend_reset: "backend reset it",
  idle_timeout: "nothing said for too long",
  backend_down: "backend went down",
  demoted: "backend is not the primary any more",
  route_removed: "route removed",
  device_gone: "its network device is gone",
  maintenance: "its backend is in maintenance",
  killed: "ended by an operator",
  keepalive: "one end did not answer",
  daemon_stopped: "daemon stopped",
};

const GOOD = ["up", "listening", "unchecked", "standby", "good", "served", "kernel", "ready"];
const BAD = ["down", "degraded", "failing", "conflict"];

// How a word of state is coloured: `good`, `bad` or `warn`.
export const level = (state) => (GOOD.includes(state) ? "good" : BAD.includes(state) ? "bad" : "warn");
