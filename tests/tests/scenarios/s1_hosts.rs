//! Hosts as operators have them: their firewalls, routing rules, other programs and settings, beside which the splice has to work
//! and which it has to leave alone.

mod firewalls;
mod following;
mod guests;
mod multipath;
mod obstacles;
mod ports;
mod routing;
mod settings;
mod stage;
mod vrf;
