//! A write that is answered before it is in the journal is found. Planting is for the whole process, so each mutant has a program of its own.

mod support;

use lamina_engine::mutant::Mutant;

#[test]
fn the_planted_bug_ack_before_write_is_found() {
    support::assert_found(Mutant::AckBeforeWrite);
}
