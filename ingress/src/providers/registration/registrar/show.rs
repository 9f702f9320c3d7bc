//! What the registrar shows of its book.

use std::collections::HashMap;
use std::sync::Arc;

use super::Registrar;
use crate::clock::now;
use crate::providers::registration::book::{Registration, Shape, Verdict};
use crate::providers::registration::compile::{Parts, route_name};
use crate::providers::registration::order::{Changed, Lease, List, Listed, ShownParts, Target};
use crate::route::{RouteName, SniPattern};

impl Registrar {
    /// Who has this name instead of us.
    pub(super) fn conflict(&self, host: &SniPattern) -> Option<RouteName> {
        let route = route_name(host, &self.contribution);
        let snapshot = self.snapshots.borrow();
        snapshot
            .routes
            .conflicts()
            .iter()
            .find(|conflict| conflict.second == route)
            .map(|conflict| conflict.first.clone())
    }

    fn lease(&self, registration: &Registration) -> Option<Lease> {
        let ttl = registration.ttl?;
        let left = self.leases.left(&registration.host, now()).unwrap_or_default();
        Some(Lease { ttl, expires_in: left.as_secs() })
    }

    pub(super) fn changed(&self, host: SniPattern, result: Verdict) -> Changed {
        let registration = self.book.get(&host);
        let nothing = ShownParts { served: 0, needs_http: 0 };
        Changed {
            result,
            generation: self.generation(),
            parts: registration.map_or(nothing, |registration| {
                let Parts { routes, needs_http } = self.settings.parts(&registration.shape);
                ShownParts { served: routes, needs_http }
            }),
            lease: registration.and_then(|registration| self.lease(registration)),
            peers: Vec::new(),
            store: self.shelf.as_ref().and_then(|shelf| shelf.answer(&self.book, &host)),
            host,
        }
    }

    pub(super) fn list(&self) -> List {
        let snapshot = self.snapshots.borrow().clone();
        let conflicts = snapshot.routes.conflicts().iter();
        let taken: HashMap<_, _> = conflicts.map(|conflict| (&conflict.second, &conflict.first)).collect();
        let upstreams = self.upstreams();
        let problem = |registration: &Registration| {
            let judged = self.settings.judge(&registration.shape, &upstreams);
            let first = taken.get(&route_name(&registration.host, &self.contribution));
            let first = first.map(|first| format!("the name belongs to route {first}"));
            judged.err().map(|problem| problem.detail().to_owned()).or(first)
        };
        let listed = |registration: &Arc<Registration>| {
            let Registration { host, owner, registered, shape, .. } = registration.as_ref();
            let Parts { routes, needs_http } = self.settings.parts(shape);
            let problem = problem(registration);
            Listed {
                host: host.clone(),
                owner: owner.clone(),
                target: match shape {
                    Shape::Simple { backends, .. } => Target::Simple { backends: backends.clone() },
                    Shape::Template { template, address, secrets: _ } => {
                        Target::Template { template: template.clone(), address: *address }
                    }
                },
                parts: ShownParts { served: if problem.is_some() { 0 } else { routes }, needs_http },
                problem,
                registered: registered / 1000,
                lease: self.lease(registration),
            }
        };
        List { generation: snapshot.generation.0, routes: self.book.iter().map(listed).collect() }
    }

    fn generation(&self) -> u64 {
        self.snapshots.borrow().generation.0
    }
}
