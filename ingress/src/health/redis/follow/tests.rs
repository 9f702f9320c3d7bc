//! Failovers, as each server and Sentinel would tell of them.

use proptest::prelude::*;

use super::*;

const RULES: Rules = Rules { rise: 2, fall: 3, has_sentinels: false };
const P: Answer = Answer::Primary { offset: 100, replicas: 0 };
const R: Answer = Answer::Replica;
const F: Answer = Answer::Failed;

/// A primary with this many replicas that has written so much.
fn p(offset: u64, replicas: usize) -> Answer {
    Answer::Primary { offset, replicas }
}

/// Rounds of answers, one of each server.
fn feed<const N: usize>(follow: &mut Follow, rounds: &[[Answer; N]]) -> Vec<Action> {
    let inputs = rounds.iter().flat_map(|round| round.iter().enumerate());
    inputs.flat_map(|(n, answer)| follow.handle(Input::Answer(n, *answer))).collect()
}

fn three() -> Follow {
    let mut follow = Follow::new(RULES, 3, None, &[]);
    assert_eq!(feed(&mut follow, &[[p(100, 2), R, R]]), [Action::Follow(0)]);
    follow
}

#[test]
fn nobody_is_followed_before_every_server_was_asked() {
    let mut follow = Follow::new(RULES, 3, None, &[]);
    assert_eq!(feed(&mut follow, &[[R, P]]), []);
    assert_eq!(follow.handle(Input::Answer(2, F)), [Action::Follow(1)]);
}

#[test]
fn a_demoted_primary_is_left_at_its_first_word() {
    let mut follow = three();
    assert_eq!(follow.handle(Input::Answer(0, R)), [Action::Leave(0, Why::Demoted)]);
    assert!(follow.must_be_empty(0));
    assert_eq!(feed(&mut follow, &[[R, P, R], [R, P, R]]), [Action::Follow(1)]);
}

#[test]
fn a_primary_that_does_not_answer_is_left_after_fall_and_taken_again_after_rise() {
    let mut follow = three();
    assert_eq!(feed(&mut follow, &[[F, R, R], [F, R, R]]), []);
    assert_eq!(feed(&mut follow, &[[F, R, R]]), [Action::Leave(0, Why::Lost)]);
    assert!(!follow.must_be_empty(0), "it may come back as what it was");
    assert_eq!(feed(&mut follow, &[[P, R, R]]), []);
    assert_eq!(feed(&mut follow, &[[P, R, R]]), [Action::Follow(0)]);
}

#[test]
fn an_old_primary_that_returns_is_not_believed_until_it_was_a_replica() {
    let mut follow = three();
    let failover = [[F, R, R], [F, R, R], [F, P, R], [F, P, R]];
    assert_eq!(feed(&mut follow, &failover), [Action::Leave(0, Why::Lost), Action::Follow(1)]);
    assert!(follow.must_be_empty(0));
    // It returns as it was, while the new one lives and while it does not.
    assert_eq!(feed(&mut follow, &[[P, P, R], [P, P, R], [P, F, R], [P, F, R]]), []);
    assert_eq!(feed(&mut follow, &[[P, F, R]; 9]), [Action::Leave(1, Why::Lost)], "nobody rather than the old one");
    assert_eq!(follow.standing(0), Standing::Rival);
    assert_eq!(feed(&mut follow, &[[P, P, R], [P, P, R]]), [Action::Follow(1)]);
    // It joins, and is promoted in order.
    assert_eq!(feed(&mut follow, &[[R, P, R]]), []);
    assert_eq!(feed(&mut follow, &[[P, R, R], [P, R, R]]), [Action::Leave(1, Why::Demoted), Action::Follow(0)]);
}

#[test]
fn who_was_deposed_is_known_over_a_reload() {
    let mut follow = Follow::new(RULES, 2, None, &[0]);
    assert_eq!(feed(&mut follow, &[[P, F]; 9]), []);
    assert_eq!(feed(&mut follow, &[[P, P]; 2]), [Action::Follow(1)]);
    assert_eq!(follow.deposed().collect::<Vec<_>>(), [0]);
    let mut alone = Follow::new(RULES, 1, None, &[0]);
    assert_eq!(feed(&mut alone, &[[P], [P]]), [Action::Follow(0)], "an operator who takes the others out means it");
}

#[test]
fn a_replica_that_somebody_made_independent_is_not_followed() {
    let mut follow = three();
    assert_eq!(feed(&mut follow, &[[p(100, 1), p(100, 0), R]; 9]), []);
    assert_eq!(feed(&mut follow, &[[p(100, 0), p(100, 0), R]; 9]), [], "nor if the primary is alone");
}

#[test]
fn the_replicas_decide_between_two_that_live() {
    let mut follow = three();
    assert_eq!(feed(&mut follow, &[[p(100, 0), p(101, 1), R]]), []);
    let moved = [Action::Leave(0, Why::Superseded), Action::Follow(1)];
    assert_eq!(feed(&mut follow, &[[p(100, 0), p(101, 1), R]; 2]), moved);
    assert_eq!(feed(&mut follow, &[[p(900, 0), p(101, 1), R]; 9]), [], "the old one is not heard");
    let mut follow = three();
    assert_eq!(feed(&mut follow, &[[p(100, 0), p(99, 1), R]; 9]), [], "it lacks what the primary has written");
}

#[test]
fn at_a_start_replicas_then_offset_then_order_decide() {
    for (answers, expected) in [
        ([p(900, 0), p(100, 1)], 1),
        ([p(900, 0), p(901, 0)], 1),
        ([p(900, 1), p(901, 1)], 1),
        ([p(100, 0), p(100, 0)], 0),
    ] {
        let mut follow = Follow::new(RULES, 2, None, &[]);
        assert_eq!(feed(&mut follow, &[answers]), [Action::Follow(expected)], "{answers:?}");
        assert_eq!(feed(&mut follow, &[answers; 1]), []);
        assert_eq!(follow.standing(1 - expected), Standing::Rival);
    }
}

fn with_sentinels() -> Follow {
    let mut follow = Follow::new(Rules { has_sentinels: true, ..RULES }, 3, None, &[]);
    assert_eq!(feed(&mut follow, &[[p(100, 2), R, R]]), [], "the Sentinels were not heard yet");
    assert_eq!(follow.handle(Input::Sentinels(Word::Named(0))), [Action::Follow(0)]);
    follow
}

#[test]
fn sentinels_decide_and_a_server_that_they_name_has_to_say_so_itself() {
    let mut follow = with_sentinels();
    assert_eq!(follow.handle(Input::Sentinels(Word::Named(1))), [Action::Leave(0, Why::Outvoted)]);
    assert!(follow.handle(Input::Answer(0, P)).is_empty(), "an old primary that does not know it yet");
    assert_eq!(feed(&mut follow, &[[P, R, R]; 5]), []);
    assert_eq!(feed(&mut follow, &[[P, P, R], [P, P, R]]), [Action::Follow(1)]);
    assert_eq!(follow.handle(Input::Sentinels(Word::Stranger)), [Action::Leave(1, Why::Outvoted)]);
}

#[test]
fn without_a_majority_who_is_followed_stays_and_nobody_else_is_chosen() {
    let mut follow = with_sentinels();
    assert_eq!(follow.handle(Input::Sentinels(Word::None)), []);
    assert_eq!(feed(&mut follow, &[[P, p(900, 2), R]; 5]), []);
    assert_eq!(feed(&mut follow, &[[F, p(900, 2), R]; 5]), [Action::Leave(0, Why::Lost)]);
    assert_eq!(feed(&mut follow, &[[F, p(900, 2), R]; 5]), []);
    assert_eq!(follow.handle(Input::Sentinels(Word::Named(1))), [Action::Follow(1)]);
}

#[test]
fn a_deposed_server_that_sentinels_name_is_believed() {
    let mut follow = with_sentinels();
    follow.handle(Input::Sentinels(Word::Named(1)));
    assert_eq!(feed(&mut follow, &[[P, P, R]; 2]), [Action::Follow(1)]);
    assert_eq!(follow.handle(Input::Sentinels(Word::Named(0))), [Action::Leave(1, Why::Outvoted), Action::Follow(0)]);
}

fn answer() -> impl Strategy<Value = Answer> {
    prop_oneof![Just(R), Just(F), (0u64..4, 0usize..3).prop_map(|(offset, replicas)| p(offset, replicas))]
}

fn input() -> impl Strategy<Value = Input> {
    let word = prop_oneof![Just(Word::None), Just(Word::Stranger), (0usize..3).prop_map(Word::Named)];
    prop_oneof![
        4 => (0usize..3, answer()).prop_map(|(n, answer)| Input::Answer(n, answer)),
        1 => word.prop_map(Input::Sentinels),
    ]
}

proptest! {
    /// Whatever they say: one at most, never one that calls itself a replica, never one against the Sentinels' word, and
    /// actions and state agree.
    #[test]
    fn there_are_never_two(inputs in proptest::collection::vec(input(), 1..200), has_sentinels: bool) {
        let mut follow = Follow::new(Rules { has_sentinels, ..RULES }, 3, None, &[]);
        let mut taking = None;
        let mut said = [None; 3];
        for input in inputs {
            match input {
                Input::Sentinels(_) if !has_sentinels => continue,
                Input::Sentinels(_) => {}
                Input::Answer(n, answer) => said[n] = Some(answer),
            }
            for action in follow.handle(input) {
                match action {
                    Action::Leave(n, _) => prop_assert_eq!(taking.take(), Some(n)),
                    Action::Follow(n) => {
                        prop_assert_eq!(taking.replace(n), None);
                        let is_primary = matches!(said[n], Some(Answer::Primary { .. }));
                        prop_assert!(is_primary);
                        prop_assert!(!has_sentinels || follow.word() == Word::Named(n));
                    }
                }
            }
            prop_assert_eq!(follow.followed(), taking);
            if let Some(n) = taking {
                prop_assert!(said[n] != Some(R));
                prop_assert!(!follow.must_be_empty(n));
                prop_assert!((0..3).filter(|other| *other != n && said[*other].is_some()).all(|n| follow.must_be_empty(n)));
            }
        }
    }
}
