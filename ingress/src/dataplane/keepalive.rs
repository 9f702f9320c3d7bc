//! Asks ends that have been silent whether they still live: a client without power, or behind a NAT that forgot it, is freed long
//! before the idle timeout, and NATs in the middle see a packet now and then.
//!
//! The question is a segment that its receiver has long acknowledged; whoever lives acknowledges it again (RFC 9293 section 3.8.4).
//! The answer proves itself as any packet does, and goes on to the other end, where it is a duplicate acknowledgement of nothing
//! that is under way: the same packet would come if both ends had each other's keepalives.

use std::collections::HashMap;
use std::io;
use std::time::{Duration, Instant};

use ingress_ebpf::connection::{Connection, FIRST_FLIGHT_ACKED, Half};
use ingress_ebpf::flow::Direction;

use super::flows::{Flows, monotonic};
use super::slots::SlotId;
use crate::config::KeepaliveConfig;
use crate::l4::outcome::EndReason;

/// Questions in one scan. The others' turn comes in the next.
const AT_ONCE: usize = 2_048;

/// What was asked so far. A daemon that starts anew asks anew.
#[derive(Debug)]
pub(super) struct Keepalive {
    config: Option<KeepaliveConfig>,
    asked: HashMap<(SlotId, u32), Asked>,
    /// Of this scan.
    sent: usize,
    complained: bool,
}

/// The questions to one end that it has not answered.
#[derive(Clone, Copy, Debug)]
struct Asked {
    times: u32,
    last: Instant,
}

/// Of a connection, after its ends were asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    Goes,
    /// One end is dead, and the connection was cut.
    Gone,
}

/// What an end is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    Nothing,
    /// It was heard of: what was asked before is answered.
    Answered,
    Question,
    /// It has not answered the last of all questions.
    End,
}

impl Keepalive {
    pub(super) fn new(config: Option<KeepaliveConfig>) -> Self {
        Self { config, asked: HashMap::new(), sent: 0, complained: false }
    }

    /// A scan begins.
    pub(super) fn begin(&mut self) {
        self.sent = 0;
    }

    /// And is over: `is_live` says which connections still are.
    pub(super) fn end(&mut self, is_live: impl Fn(SlotId) -> bool) {
        self.asked.retain(|(slot, _), _| is_live(*slot));
    }
}

impl Flows {
    /// Asks the ends of a spliced connection, as far as they are due.
    pub(super) fn keep_alive(&self, keepalive: &mut Keepalive, index: u32, connection: &Connection) -> Life {
        let Some(config) = keepalive.config else { return Life::Goes };
        if connection.from_backend.flags & FIRST_FLIGHT_ACKED == 0 {
            return Life::Goes;
        }
        let slot = SlotId { index, generation: connection.generation };
        let (now, at) = (monotonic(), Instant::now());
        let mut asked = false;
        for (towards, half) in
            [(Direction::ToClient, &connection.from_client), (Direction::ToBackend, &connection.from_backend)]
        {
            let key = (slot, towards as u32);
            match due(&config, silence(half, now), keepalive.asked.get(&key), at) {
                Due::Nothing => {}
                Due::Answered => drop(keepalive.asked.remove(&key)),
                Due::Question if keepalive.sent == AT_ONCE => {}
                Due::Question => match self.resetter.probe(connection, towards) {
                    Ok(()) => {
                        keepalive.sent += 1;
                        asked = true;
                        let times = keepalive.asked.get(&key).map_or(0, |asked| asked.times) + 1;
                        keepalive.asked.insert(key, Asked { times, last: at });
                    }
                    Err(error) => keepalive.complain(&error),
                },
                Due::End => {
                    self.cut_slot(index, connection, EndReason::Keepalive);
                    return Life::Gone;
                }
            }
        }
        if asked {
            // A host that tracks connections takes our question for the middle of one.
            self.untrack(connection);
        }
        Life::Goes
    }
}

impl Keepalive {
    /// A question that was not sent counts for nothing: nobody dies of a firewall of our own.
    fn complain(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.complained, true) {
            tracing::warn!(%error, "keepalive: a question was not sent; does the host's firewall drop what it sends itself?");
        }
    }
}

fn silence(half: &Half, now: u64) -> Duration {
    Duration::from_nanos(now.saturating_sub(half.last_seen))
}

fn due(config: &KeepaliveConfig, silent: Duration, asked: Option<&Asked>, now: Instant) -> Due {
    let Some(Asked { times, last }) = asked else {
        return if silent < config.after { Due::Nothing } else { Due::Question };
    };
    let since = now.saturating_duration_since(*last);
    if silent < since {
        Due::Answered
    } else if since < config.interval {
        Due::Nothing
    } else if *times < config.probes {
        Due::Question
    } else {
        Due::End
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: KeepaliveConfig =
        KeepaliveConfig { after: Duration::from_secs(60), interval: Duration::from_secs(10), probes: 3 };

    /// What an end is due each second of its silence, from the last packet on, and what it is asked.
    fn silence_of(seconds: u64, heard_at: Option<u64>) -> Vec<(u64, Due)> {
        let begun = Instant::now();
        let mut asked: Option<Asked> = None;
        let mut story = Vec::new();
        for second in 1..=seconds {
            let now = begun + Duration::from_secs(second);
            let last_heard = heard_at.filter(|at| *at <= second).unwrap_or(0);
            let due = due(&CONFIG, Duration::from_secs(second - last_heard), asked.as_ref(), now);
            match due {
                Due::Nothing => continue,
                Due::Answered => asked = None,
                Due::Question => asked = Some(Asked { times: asked.map_or(0, |a| a.times) + 1, last: now }),
                Due::End => {
                    story.push((second, due));
                    break;
                }
            }
            story.push((second, due));
        }
        story
    }

    #[test]
    fn an_end_that_never_answers_is_asked_as_often_as_told_and_then_dead() {
        let asked = [(60, Due::Question), (70, Due::Question), (80, Due::Question), (90, Due::End)];
        assert_eq!(silence_of(300, None), asked);
    }

    #[test]
    fn an_answer_to_the_last_question_is_in_time() {
        let story = silence_of(150, Some(85));
        assert_eq!(
            story,
            [(60, Due::Question), (70, Due::Question), (80, Due::Question), (85, Due::Answered), (145, Due::Question),]
        );
    }

    #[test]
    fn an_end_that_was_silent_while_no_daemon_ran_is_asked_first() {
        assert_eq!(due(&CONFIG, Duration::from_secs(86_400), None, Instant::now()), Due::Question);
    }

    #[test]
    fn an_end_that_speaks_is_not_asked() {
        assert_eq!(due(&CONFIG, Duration::from_secs(59), None, Instant::now()), Due::Nothing);
    }
}
