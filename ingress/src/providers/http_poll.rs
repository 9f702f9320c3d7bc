//! Traefik's dynamic configuration from a URL: asked at once, then again and again.
//!
//! The control plane is never on the path of a connection. While it does not answer, or answers what is of no use, what it
//! said last stays; it is asked less often, with some randomness, so that it can get up.

mod client;

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use tokio::time::Instant;

use crate::config::{HttpPollConfig, ProviderConfig, read_yaml};
use crate::control::last_good::ConfigHash;
use crate::route::Contribution;

use super::outlet::Outlet;
use super::traefik::{Document, Settings};
use client::{Answer, Client};

/// Asks until it is dropped.
pub(super) async fn run(config: ProviderConfig, poll: HttpPollConfig, mut outlet: Outlet) {
    let settings = Settings { entry_points: poll.entry_points.clone(), health: config.health, on_down: config.on_down };
    let interval = poll.interval;
    let mut client = Client::new(poll);
    let mut last = None;
    let mut failures = 0;
    let mut is_first = true;
    loop {
        let asked = Instant::now();
        let answer = match is_first {
            true => first(&mut client, &settings, &outlet).await,
            false => client.ask().await.map_err(|error| error.to_string()),
        };
        is_first = false;
        match answer.and_then(|answer| read(answer, last, &settings, &outlet)) {
            Ok(None) => {
                tracing::info!(provider = %outlet.provider(), changed = false, "polled");
                outlet.unchanged().await;
                failures = 0;
            }
            Ok(Some((contribution, text))) => {
                let items = contribution.len();
                tracing::info!(provider = %outlet.provider(), changed = true, items, "polled");
                outlet.says(contribution, &text).await;
                last = Some(ConfigHash::of(&text));
                client.accepted();
                failures = 0;
            }
            Err(error) => {
                outlet.failed(error).await;
                failures += 1;
            }
        }
        tokio::time::sleep_until(asked + wait(interval, failures, RandomState::new().hash_one(()))).await;
    }
}

/// At a start nobody waits long for the source: what it said before the restart is used until it answers.
async fn first(client: &mut Client, settings: &Settings, outlet: &Outlet) -> Result<Answer, String> {
    let asking = client.ask();
    tokio::pin!(asking);
    let quick = tokio::time::timeout(PATIENCE, &mut asking).await;
    let parse = |text: &str| compile(text, settings, outlet.contribution());
    match quick {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => {
            outlet.last_good(parse).await;
            Err(error.to_string())
        }
        Err(_) => {
            outlet.last_good(parse).await;
            asking.await.map_err(|error| error.to_string())
        }
    }
}

/// `None`: nothing new.
fn read(
    answer: Answer,
    last: Option<ConfigHash>,
    settings: &Settings,
    outlet: &Outlet,
) -> Result<Option<(Contribution, String)>, String> {
    match answer {
        Answer::Unchanged => Ok(None),
        Answer::Text(text) if last == Some(ConfigHash::of(&text)) => Ok(None),
        Answer::Text(text) => Ok(Some((compile(&text, settings, outlet.contribution())?, text))),
    }
}

fn compile(text: &str, settings: &Settings, contribution: Contribution) -> Result<Contribution, String> {
    let value = match text.trim_start().starts_with('{') {
        true => serde_json::from_str(text).map_err(|error| format!("the answer is not JSON: {error}"))?,
        false => {
            read_yaml(text, "answer".as_ref()).map_err(|problems| format!("the answer is of no use: {problems}"))?
        }
    };
    let mut document = Document::default();
    document.add(value).map_err(|error| format!("the answer is of no use: {error}"))?;
    Ok(document.compile(settings, contribution))
}

/// From one question to the next, by the number of failures in a row. Never longer than the interval while all is well.
fn wait(interval: Duration, failures: u32, random: u64) -> Duration {
    let longest = interval.max(LONGEST_WAIT);
    let whole = interval.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(longest);
    let part = (random >> 32) as f64 / f64::from(u32::MAX);
    // The upper tenth is left to chance.
    whole.mul_f64(1.0 - part * 0.1)
}

/// So long a start waits before it takes what was kept.
const PATIENCE: Duration = Duration::from_millis(700);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_that_fails_is_asked_less_often_and_a_good_one_never_later_than_the_interval() {
        let five = Duration::from_secs(5);
        for random in [0, u64::MAX / 2, u64::MAX] {
            assert!((4.5..=5.0).contains(&wait(five, 0, random).as_secs_f64()));
            assert!((4.5..=5.0).contains(&wait(five, 1, random).as_secs_f64()), "one failure is no outage");
            assert!((9.0..=10.0).contains(&wait(five, 2, random).as_secs_f64()));
            assert!((27.0..=30.0).contains(&wait(five, 1_000, random).as_secs_f64()));
            assert!((54.0..=60.0).contains(&wait(Duration::from_secs(60), 9, random).as_secs_f64()));
        }
    }
}
