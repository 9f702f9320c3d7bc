//! Each provider's requests and answers, as its documentation shows them.

use serde_json::json;

use super::*;

fn record(name: &str, kind: Kind) -> Record {
    Record { zone: "example.com".into(), name: name.into(), kind, ttl: Duration::from_secs(300) }
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn reply(status: u16, body: Value) -> Reply {
    Reply { status, wait: None, body }
}

fn addresses(found: Result<Vec<Found>, ApiError>) -> Result<Vec<String>, ApiError> {
    found.map(|found| found.into_iter().map(|found| found.address).collect())
}

#[test]
fn cloudflare_is_asked_for_one_name_and_type_and_keeps_ttl_and_proxied() {
    let api = Cloudflare { zone_id: "023e105f4ecef8ad9ca31a8372d0c353".into() };
    let node = record("node1.example.com", Kind::A);
    let list = "/zones/023e105f4ecef8ad9ca31a8372d0c353/dns_records";
    let find = api.find(&node);
    assert_eq!(find.path, format!("{list}?type=A&name.exact=node1.example.com&per_page=100"));
    assert_eq!((find.method, find.body, find.token), (Method::Get, None, TokenAt::Header));

    let theirs = json!({ "id": "372e", "type": "A", "name": "node1.example.com", "content": "192.0.2.7", "ttl": 3600,
        "proxied": true, "proxiable": true, "comment": "by hand", "tags": [] });
    let other = json!({ "id": "1", "type": "A", "name": "node10.example.com", "content": "192.0.2.8" });
    let body = json!({ "success": true, "errors": [], "messages": [], "result": [other, theirs],
        "result_info": { "count": 2, "page": 1, "per_page": 100, "total_count": 2 } });
    let found = api.found(&node, &reply(200, body)).expect("a good answer");
    assert_eq!(found.len(), 1, "whatever the filter did, only our own name counts");
    let replace = api.replace(&node, &found, 0, ip("192.0.2.9"));
    assert_eq!((replace.method, replace.path), (Method::Patch, format!("{list}/372e")));
    let expected =
        json!({ "type": "A", "name": "node1.example.com", "content": "192.0.2.9", "ttl": 3600, "proxied": true });
    assert_eq!(replace.body, Some(expected));
    let create = api.create(&node, ip("192.0.2.9"));
    assert_eq!((create.method, create.path.as_str()), (Method::Post, list));
    assert_eq!(create.body.expect("a body")["proxied"], false);
}

#[test]
fn cloudflares_refusals_are_told_apart() {
    let api = Cloudflare { zone_id: "z".into() };
    let bad =
        json!({ "success": false, "errors": [{ "code": 9109, "message": "Invalid access token" }], "result": null });
    let refused = |status, body| api.changed(&reply(status, body));
    assert_eq!(refused(403, bad.clone()), Err(ApiError::Denied("HTTP 403: Invalid access token".into())));
    assert_eq!(refused(400, bad.clone()), Err(ApiError::Refused("HTTP 400: Invalid access token".into())));
    assert_eq!(refused(200, bad), Err(ApiError::Refused("Invalid access token".into())));
    assert_eq!(refused(502, Value::Null), Err(ApiError::Server("HTTP 502".into())));
    assert!(matches!(refused(200, Value::Null), Err(ApiError::NotUnderstood(_))));
    assert!(matches!(refused(200, json!({})), Err(ApiError::NotUnderstood(_))));
    let wait = Some(Duration::from_secs(30));
    let limited = Reply { status: 429, wait, body: Value::Null };
    assert_eq!(api.changed(&limited), Err(ApiError::RateLimited(wait)));
    let half = json!({ "success": true, "result": [], "result_info": { "total_count": 7 } });
    assert!(api.found(&record("a.example.com", Kind::A), &reply(200, half)).is_err(), "a list that is not whole");
}

#[test]
fn hetzners_set_is_replaced_with_all_others_of_it_as_they_were() {
    let wildcard = record("*.example.com", Kind::Aaaa);
    let find = Hetzner.find(&wildcard);
    assert_eq!(find.path, "/zones/example.com/rrsets/*/AAAA");
    let body = json!({ "rrset": { "id": "*/AAAA", "name": "*", "type": "AAAA", "ttl": null, "zone": 42,
        "records": [{ "value": "2001:db8::1", "comment": "other" }, { "value": "2001:db8::2", "comment": "" }] } });
    let found = Hetzner.found(&wildcard, &reply(200, body)).expect("a good answer");
    let replace = Hetzner.replace(&wildcard, &found, 1, ip("2001:db8::3"));
    assert_eq!(
        (replace.method, replace.path.as_str()),
        (Method::Post, "/zones/example.com/rrsets/*/AAAA/actions/set_records")
    );
    let records = json!([{ "value": "2001:db8::1", "comment": "other" }, { "value": "2001:db8::3", "comment": "" }]);
    assert_eq!(replace.body, Some(json!({ "records": records })));

    let apex = record("example.com", Kind::A);
    assert_eq!(Hetzner.find(&apex).path, "/zones/example.com/rrsets/@/A");
    let create = Hetzner.create(&apex, ip("192.0.2.9"));
    assert_eq!(create.path, "/zones/example.com/rrsets");
    let made = json!([{ "value": "192.0.2.9", "comment": COMMENT }]);
    assert_eq!(create.body, Some(json!({ "name": "@", "type": "A", "ttl": 300, "records": made })));
    let missing = json!({ "error": { "code": "not_found", "message": "rrset not found" } });
    assert_eq!(addresses(Hetzner.found(&apex, &reply(404, missing))), Ok(vec![]));
    let action =
        |status| json!({ "action": { "id": 1, "command": "set_rrset_records", "status": status, "error": null } });
    assert_eq!(Hetzner.changed(&reply(201, action("running"))), Ok(()));
    assert!(Hetzner.changed(&reply(201, action("error"))).is_err());
    let denied = json!({ "error": { "code": "unauthorized", "message": "unable to authenticate" } });
    assert_eq!(Hetzner.changed(&reply(401, denied)), Err(ApiError::Denied("HTTP 401: unable to authenticate".into())));
}

#[test]
fn http_net_gets_the_token_in_the_body_and_deletes_nothing() {
    let node = record("node1.example.com", Kind::A);
    let find = HttpNet.find(&node);
    assert_eq!((find.path.as_str(), find.token), ("/recordsFind", TokenAt::Body("authToken")));
    let filter = &find.body.expect("a body")["filter"];
    assert_eq!(filter["subFilter"][0], json!({ "field": "RecordName", "value": "node1.example.com" }));
    let theirs = json!({ "id": "15010100000010", "name": "node1.example.com", "type": "A", "content": "192.0.2.7",
        "ttl": 86000, "priority": null, "zoneConfigId": "15010100000010", "comments": "by hand" });
    let body = json!({ "errors": [], "warnings": [], "status": "success",
        "response": { "data": [theirs], "limit": 100, "page": 1, "totalEntries": 1, "totalPages": 1 } });
    let found = HttpNet.found(&node, &reply(200, body)).expect("a good answer");
    let replace = HttpNet.replace(&node, &found, 0, ip("192.0.2.9"));
    let changed = json!({ "id": "15010100000010", "name": "node1.example.com", "type": "A", "content": "192.0.2.9",
        "ttl": 86000, "comments": "by hand" });
    let expected =
        json!({ "zoneName": "example.com", "recordsToAdd": [], "recordsToModify": [changed], "recordsToDelete": [] });
    assert_eq!((replace.path.as_str(), replace.body), ("/recordsUpdate", Some(expected)));
    let create = HttpNet.create(&node, ip("192.0.2.9")).body.expect("a body");
    assert_eq!(create["recordsToAdd"][0]["ttl"], 300);
    let error =
        json!({ "status": "error", "errors": [{ "code": 10408, "text": "The zone is\nblocked" }], "response": null });
    assert_eq!(HttpNet.changed(&reply(200, error)), Err(ApiError::Refused("The zone is blocked".into())));
    assert_eq!(HttpNet.changed(&reply(200, json!({ "status": "pending", "errors": [] }))), Ok(()));
}
