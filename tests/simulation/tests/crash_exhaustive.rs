//! Every history of up to three operations on four blocks, each crash point of it, each kind of image: invariants 1 (Kill), 2 (Power)
//! and 4 (Store only), and that a recovery may itself be cut anywhere.
//!
//! Blocks are alike, so histories that differ only in the names of their blocks count once. A history's crashes before its last operation
//! are those of a shorter history, so only the last operation's are looked at.

mod support;

use std::sync::atomic::{AtomicU64, Ordering};

use lamina_simulation::explore::{Effort, Explorer};
use lamina_simulation::history::{Step, check_reads, ended, play};
use lamina_simulation::life::{End, Life, Shape};
use support::{in_parallel, small_volume};

const BLOCKS: usize = 4;

/// What may come next when `used` blocks have been named: operations on those and on the next one, and operations without a block.
fn choices(used: usize) -> Vec<(Step, usize)> {
    let mut choices = Vec::new();
    for block in 0..=used.min(BLOCKS - 1) {
        let used = used.max(block + 1);
        choices.push((Step::Write { volume: 0, block }, used));
        choices.push((Step::SubBlock { volume: 0, block }, used));
        choices.push((Step::Trim { volume: 0, block }, used));
    }
    for step in [Step::Flush { volume: 0 }, Step::Store, Step::Restart(End::Clean), Step::Restart(End::Killed)] {
        choices.push((step, used));
    }
    choices
}

fn histories(length: usize) -> Vec<Vec<Step>> {
    let mut all = vec![(Vec::new(), 0)];
    let mut done = Vec::new();
    for _ in 0..length {
        let mut longer = Vec::new();
        for (history, used) in all {
            for (step, used) in choices(used) {
                let mut history = history.clone();
                history.push(step);
                longer.push((history, used));
            }
        }
        done.extend(longer.iter().map(|(history, _)| history.clone()));
        all = longer;
    }
    done
}

/// With `neighbour`, another volume writes to the same journal before each step, and never flushes.
fn explore(histories: &[Vec<Step>], neighbour: bool, cut_recoveries: u64) -> u64 {
    let volumes = if neighbour { vec![small_volume(BLOCKS); 2] } else { vec![small_volume(BLOCKS)] };
    let shape = Shape::of(&volumes);
    let (world, past) = Life::create(&shape).unwrap_or_else(|v| panic!("{v}"));
    let effort = Effort { exhaustive_writes: 8, random_images: 3, cut_recoveries, moments: 100 };
    let states = AtomicU64::new(0);
    in_parallel(histories.len(), |n| {
        let history = &histories[n];
        let mut life = Life::begin(&shape, &world, &past).unwrap_or_else(|v| panic!("{v}"));
        let mut from = 0;
        for (at, step) in history.iter().enumerate() {
            if at + 1 == history.len() {
                from = life.events();
            }
            if neighbour {
                play(&mut life, &shape, Step::Write { volume: 1, block: at }).unwrap_or_else(|v| panic!("{history:?}: {v}"));
            }
            play(&mut life, &shape, *step).unwrap_or_else(|v| panic!("{history:?}: {v}"));
        }
        check_reads(&life).unwrap_or_else(|v| panic!("{history:?}: {v}"));
        let mut explorer = Explorer::new(effort, n as u64);
        let found = explorer.explore(&ended(life, &shape, &world, &past), from);
        if let Err(finding) = found {
            panic!("history {history:?}, neighbour {neighbour}:\n{finding}");
        }
        states.fetch_add(explorer.count.states, Ordering::Relaxed);
        true
    });
    states.into_inner()
}

#[test]
fn every_crash_of_every_history_of_three_operations_keeps_what_was_promised() {
    let histories = histories(3);
    let begun = std::time::Instant::now();
    let states = explore(&histories, false, 5);
    println!("{} histories, {states} states, {:?}", histories.len(), begun.elapsed());
    assert!(states > 5_000, "only {states} states: the enumeration has lost its point");
}

#[test]
fn a_neighbour_in_the_same_journal_changes_no_promise() {
    let histories = histories(2);
    let begun = std::time::Instant::now();
    let states = explore(&histories, true, 10);
    println!("{} histories, {states} states, {:?}", histories.len(), begun.elapsed());
    assert!(states > 500, "only {states} states: the enumeration has lost its point");
}
