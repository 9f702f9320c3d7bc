//! Health, weight and counters of one backend.

use super::*;
use crate::balance::fixture;

fn one() -> Backend {
    Backend::new(PoolName::new("web"), &fixture::backend("a", 1))
}

fn named() -> Backend {
    let address = BackendAddress::Dns { host: "app.example.com".into(), port: 443 };
    Backend::new(PoolName::new("web"), &BackendConfig { name: "app".into(), address, weight: 1 })
}

fn socket(last: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, last], 443))
}

#[test]
fn an_end_too_many_leaves_in_flight_at_zero() {
    let backend = one();
    backend.connection_started();
    backend.connection_ended(10, 20);
    backend.connection_ended(1, 2);
    assert_eq!(backend.in_flight(), 0);
    assert_eq!((backend.bytes_to_backend(), backend.bytes_to_client()), (11, 22));
}

#[test]
fn effective_weight_is_linear_and_at_least_one_percent() {
    let backend = one();
    let ramp = Duration::from_secs(10);
    let t0 = Instant::now();
    assert_eq!(backend.effective_weight(5, ramp, t0), 5 * select::UNIT, "no slow start at first start");
    backend.checked(HealthState::Up, Check::good(Duration::ZERO, t0));
    assert_eq!(backend.effective_weight(5, ramp, t0), 5 * select::UNIT, "nor after the first good probe");
    backend.checked(HealthState::Down, Check::failed("x", t0));
    backend.checked(HealthState::Up, Check::good(Duration::ZERO, t0));
    let at = |secs| backend.effective_weight(5, ramp, t0 + Duration::from_secs(secs));
    assert_eq!(at(0), 5 * select::UNIT / 100);
    assert_eq!(at(5), 5 * select::UNIT / 2);
    assert_eq!(at(10), 5 * select::UNIT);
    assert_eq!(backend.effective_weight(5, Duration::ZERO, t0), 5 * select::UNIT, "slow start is off");
}

#[test]
fn a_pool_that_loses_its_checks_frees_its_backends() {
    let backend = one();
    fixture::mark(&backend, HealthState::Down);
    assert!(!backend.is_up());
    backend.forget_health(Instant::now());
    assert!(backend.is_up());
    assert_eq!(backend.health().state, HealthState::Unchecked);

    let backend = named();
    backend.set_addresses(vec![socket(1), socket(2)]);
    backend.address_checked(socket(1), false);
    backend.forget_health(Instant::now());
    assert_eq!(backend.address(), Some(socket(1)), "no address is passed over any more");
}

#[test]
fn health_tells_the_last_check_and_since_when() {
    let backend = one();
    let t0 = Instant::now();
    let t1 = t0 + Duration::from_secs(1);
    backend.checked(HealthState::Down, Check::failed("connection refused", t0));
    backend.checked(HealthState::Down, Check::failed("no answer", t1));
    let health = backend.health();
    assert_eq!((health.state, health.since), (HealthState::Down, t0));
    assert_eq!(health.last_check.and_then(|c| c.error).as_deref(), Some("no answer"));
    assert_eq!(backend.checks_failed_total(), 2);
}

#[test]
fn history_tells_each_change_with_its_error_and_no_check_that_changed_nothing() {
    let backend = one();
    let t0 = Instant::now();
    let at = |secs| t0 + Duration::from_secs(secs);
    backend.checked(HealthState::Up, Check::good(Duration::ZERO, at(0)));
    backend.checked(HealthState::Up, Check::failed("once", at(1)));
    backend.checked(HealthState::Down, Check::failed("connection refused", at(2)));
    backend.checked(HealthState::Down, Check::failed("again", at(3)));
    backend.forget_health(at(4));
    let told: Vec<_> = backend.history().into_iter().map(|t| (t.at, t.to, t.error)).collect();
    let down = Some("connection refused".to_owned());
    let expected =
        [(at(4), HealthState::Unchecked, None), (at(2), HealthState::Down, down), (at(0), HealthState::Up, None)];
    assert_eq!(told, expected);
}
