//! Carries a connection in userspace: to its end, or until it is quiet, where the pool hands off what is quiet.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Plane;
use super::handoff::Handoff;
use super::handoff::quiet::{self, Still};
use super::outcome::RelayReason;
use super::relay::{Relay, Stopped};
use crate::balance::Backend;
use crate::config::HandoffPolicy;
use crate::flow::{FlowFilter, Transferred};
use crate::metrics::ListenerMetrics;

/// A connection that was not handed off.
pub(super) struct Kept {
    pub(super) backend: Arc<Backend>,
    pub(super) reason: RelayReason,
    pub(super) handoff: Box<Handoff>,
}

/// After attempts in vain, the next one waits twice as long, up to this.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

pub(super) async fn carry(plane: &Plane, metrics: &ListenerMetrics, kept: Kept, begun: Instant) {
    let Kept { backend, reason, handoff } = kept;
    let Handoff {
        mut client,
        backend: mut socket,
        first_flight,
        hello_len,
        client_read: _,
        policy,
        idle_timeout,
        info,
        guards,
        notes,
        wire,
    } = *handoff;
    let mut wait = match policy {
        HandoffPolicy::WhenIdle(after) if reason == RelayReason::WhenIdle => Some(after),
        HandoffPolicy::WhenIdle(_) | HandoffPolicy::Always | HandoffPolicy::RttBelow(_) | HandoffPolicy::Never => None,
    };
    // The first flight is one write; only a relay goes on writing. On a dead socket the relay says what is wrong.
    let _ = socket.stream.set_nodelay(true);
    let relayed = plane.relays.list(info, reason, socket.source, begun);
    let mut relay = Relay::new(&mut client, &mut socket.stream, first_flight, hello_len);
    let stopped = loop {
        match relay.run(&relayed, idle_timeout, wait).await {
            Stopped::Ended(reason) => break Err(reason),
            Stopped::Still => {}
        }
        let (Some(prepared), Some(notes)) = (&socket.prepared, &notes) else {
            // None of those is told to wait for quiet.
            wait = None;
            continue;
        };
        let (client, backend) = relay.sockets();
        let (source, info, carried) = (socket.source, &relayed.info, relayed.transferred());
        match quiet::freeze(
            &plane.kernel,
            &Still { client, wire, backend, source, prepared, notes, carried, idle_timeout, info },
        ) {
            Ok(frozen) => break Ok(frozen),
            Err(why) => {
                tracing::debug!(id = info.id, ?why, "quiet, and yet not handed off");
                wait = wait.map(|wait| (wait * 2).min(LONGEST_WAIT.max(wait)));
            }
        }
    };
    match stopped {
        Ok(frozen) => {
            let (_, told) = relayed.leave();
            metrics.handed_off_later();
            frozen.go_on(client, socket, told, Box::new(guards));
            let relayed = relayed.unlist();
            // Whoever cut the relay in this moment has asked the kernel in vain.
            if let Some(reason) = relayed.cut_reason() {
                plane.kernel.cut(&FlowFilter { id: Some(relayed.info.id), ..FlowFilter::default() }, reason);
            }
        }
        Err(reason) => {
            let (end, told) = relayed.ended(reason);
            drop((relayed, client, socket, guards));
            let all = Transferred { to_backend: end.bytes_to_backend, to_client: end.bytes_to_client };
            let rest = all.since(told);
            backend.connection_ended(rest.to_backend, rest.to_client);
            plane.ends.record(&end, told);
        }
    }
}
