//! A daemon whose volumes are attached and left alone.

use std::path::Path;
use std::time::Duration;

use lamina_harness::{Client, ClientOptions, HarnessError, process_use};

use crate::contender::{Contender, Kind, Sizes};
use crate::report::{Goal, Report};
use crate::settings::Settings;

pub(crate) fn run(root: &Path, settings: &Settings, report: &mut Report) -> Result<(), HarnessError> {
    let sizes = Sizes { disk: 64 << 20, set: 16 << 20, journal: 512 << 20, cache: 512 << 20, memory: 512 << 20 };
    let contender = Contender::start(&root.join("idle"), Kind::Lamina, 8, sizes)?;
    let mut attached = Vec::new();
    for socket in contender.sockets() {
        let options = ClientOptions { queues: 2, ..ClientOptions::default() };
        attached.push(Client::connect_within(socket, options, Duration::from_secs(30))?);
    }
    std::thread::sleep(Duration::from_secs(3));
    let time = Duration::from_secs(if settings.quick { 5 } else { 20 });
    let before = process_use(contender.pid())?.cpu();
    std::thread::sleep(time);
    let used = process_use(contender.pid())?.cpu() - before;
    let share = used.as_secs_f64() / time.as_secs_f64() * 100.0;
    report.row("idle daemon, 8 attached volumes", share, "% of a CPU", Goal::AtMost(1.0), format!("over {time:?}"));
    drop(attached);
    Ok(())
}
