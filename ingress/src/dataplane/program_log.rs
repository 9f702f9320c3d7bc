//! What the programs themselves have to say, for whoever asks: `INGRESS_LOG=info,kernel=debug`. Off unless asked for; the
//! programs then do not even look at their log calls.

use aya::Ebpf;
use aya_log::EbpfLogger;
use ingress_ebpf::verdict::Verdict;
use tracing::Level;

/// The global that tells the programs how much to say.
pub(super) const LEVEL: &str = aya_log::LEVEL;
const TARGET: &str = "kernel";

/// Reads the programs' log ring when asked to.
pub(super) struct ProgramLog(Option<EbpfLogger<ToTracing>>);

/// Hands records on to our own log.
pub(super) struct ToTracing;

/// 0 is off, then error to trace, as aya-log counts.
pub(super) fn level() -> u8 {
    let enabled = [
        tracing::enabled!(target: TARGET, Level::ERROR),
        tracing::enabled!(target: TARGET, Level::WARN),
        tracing::enabled!(target: TARGET, Level::INFO),
        tracing::enabled!(target: TARGET, Level::DEBUG),
        tracing::enabled!(target: TARGET, Level::TRACE),
    ];
    enabled.iter().filter(|enabled| **enabled).count() as u8
}

impl ProgramLog {
    pub(super) fn open(bpf: &mut Ebpf) -> Self {
        let logger = EbpfLogger::init_with_logger(bpf, ToTracing);
        if let Err(error) = &logger {
            tracing::warn!(%error, "the programs' own log cannot be read");
        }
        Self(logger.ok())
    }

    /// Passes on what has come since the last call.
    pub(super) fn flush(&mut self) {
        if let Some(logger) = &mut self.0 {
            logger.flush();
        }
    }
}

impl log::Log for ToTracing {
    fn enabled(&self, _metadata: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let message = with_word(&record.args().to_string());
        match record.level() {
            log::Level::Error => tracing::error!(target: "kernel", "{message}"),
            log::Level::Warn => tracing::warn!(target: "kernel", "{message}"),
            log::Level::Info => tracing::info!(target: "kernel", "{message}"),
            log::Level::Debug => tracing::debug!(target: "kernel", "{message}"),
            log::Level::Trace => tracing::trace!(target: "kernel", "{message}"),
        }
    }

    fn flush(&self) {}
}

/// The programs write a verdict's number; a person reads its word.
fn with_word(message: &str) -> String {
    let Some((before, rest)) = message.split_once("verdict ") else { return message.to_owned() };
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let verdict = rest[..digits].parse::<usize>().ok().and_then(|number| Verdict::ALL.get(number));
    verdict.map_or_else(|| message.to_owned(), |verdict| format!("{before}{}{}", verdict.as_str(), &rest[digits..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdicts_number_becomes_its_word() {
        assert_eq!(with_word("dropped: verdict 13, device 2"), "dropped: drop_stale, device 2");
        assert_eq!(with_word("verdict 9999"), "verdict 9999");
        assert_eq!(with_word("nothing to see"), "nothing to see");
    }
}
