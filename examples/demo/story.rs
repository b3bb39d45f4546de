//! The story, step by step, with what each step costs.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use aztec_cache_test_support::s3::Counts;

use crate::Failure;
use crate::fuse::is_in_path;
use crate::interrupts::Interrupts;
use crate::stage::{LATENCY, RATE, Stage};

/// How long a file may take from its last byte to its place in the cache directory.
const KEPT_WITHIN: Duration = Duration::from_secs(30);
/// How often the server is looked at while the mount is kept.
const LOOK: Duration = Duration::from_millis(300);

/// Cold reads, warm reads, and warm reads in a new mount without the server.
pub fn tell(stage: &Stage) -> Result<(), Failure> {
    stage.shell.say(format_args!(
        "An S3 server in this process stands for the team's bucket: {} ms away, {} MB/s per connection.\n\
         ~ is {}, which is removed at the end.",
        LATENCY.as_millis(),
        RATE / 1_000_000,
        stage.home().display()
    ))?;
    let read = archives(stage);
    let before = stage.server.counts();
    mount(stage)?;
    look(stage)?;
    let cold = cold(stage, &read)?;
    kept(stage)?;
    let warm = warm(stage, &read)?;
    let next_day = remounted(stage, &read)?;
    stage.shell.remark(format_args!(
        "In all: {:.2} s cold, {:.2} s warm, {:.2} s the next day.",
        cold.as_secs_f64(),
        warm.as_secs_f64(),
        next_day.as_secs_f64()
    ))?;
    stage.shell.measure(cost(&before, &stage.server.counts()))
}

/// What is unpacked: a `.zst` and a `.tar.gz`, as far as tar can.
fn archives(stage: &Stage) -> Vec<&str> {
    let can_unpack = |name: &&String| !name.ends_with(".zst") || is_in_path("zstd");
    stage.names.iter().filter(can_unpack).take(2).map(String::as_str).collect()
}

fn mount(stage: &Stage) -> Result<(), Failure> {
    let shell = &stage.shell;
    let params = format!("--endpoint-url {}", stage.server.url());
    shell.remark("Mount the bucket. What is read will stay in CACHE_LOCAL_DIR.")?;
    shell.export("CACHE_LOCAL_DIR", stage.cache(), "~/.aztec-cache")?;
    shell.export("S3_BUILD_CACHE_AWS_PARAMS", &params, &format!("'{params}'"))?;
    shell.run_whole("aztec-cache mount").map(drop)
}

fn look(stage: &Stage) -> Result<(), Failure> {
    stage.shell.remark("The bucket is a directory. Looking downloads nothing.")?;
    measured(stage, "ls -l ~/.aztec-cache/remote", || Ok(())).map(drop)
}

fn cold(stage: &Stage, names: &[&str]) -> Result<Duration, Failure> {
    stage.shell.remark("Cold: fetched on first open, in parallel, and unpacked as it arrives.")?;
    names.iter().map(|name| measured(stage, &untar(name, "cold"), || wait_until_kept(stage, name))).sum()
}

fn kept(stage: &Stage) -> Result<(), Failure> {
    stage.shell.remark("They are plain files now, under their own names.")?;
    stage.shell.run("ls -l ~/.aztec-cache").map(drop)
}

fn warm(stage: &Stage, names: &[&str]) -> Result<Duration, Failure> {
    stage.server.stop();
    stage.shell.remark("The server is stopped. Warm: served from the disk.")?;
    names.iter().map(|name| measured(stage, &untar(name, "warm"), || Ok(()))).sum()
}

fn remounted(stage: &Stage, names: &[&str]) -> Result<Duration, Failure> {
    let shell = &stage.shell;
    shell.remark("The next day, still no server: mount again.")?;
    shell.run_whole("aztec-cache unmount")?;
    shell.run_whole("aztec-cache mount")?;
    let took: Duration =
        names.iter().map(|name| measured(stage, &untar(name, "again"), || Ok(()))).sum::<Result<_, _>>()?;
    shell.run("diff -r cold again && echo 'the same files'")?;
    Ok(took)
}

fn untar(name: &str, to: &str) -> String {
    format!("tar -xf ~/.aztec-cache/remote/{name} -C {to}")
}

/// Runs `command` and shows its time, and the requests made and bytes sent until `settled` returns.
fn measured(
    stage: &Stage,
    command: &str,
    settled: impl FnOnce() -> Result<(), Failure>,
) -> Result<Duration, Failure> {
    let before = stage.server.counts();
    let took = stage.shell.run(command)?;
    settled()?;
    let cost = cost(&before, &stage.server.counts());
    stage.shell.measure(format_args!("{:.2} s, {cost}", took.as_secs_f64()))?;
    Ok(took)
}

/// The file is published a moment after its last byte was read, once it is safe on the disk.
fn wait_until_kept(stage: &Stage, name: &str) -> Result<(), Failure> {
    let (start, path) = (Instant::now(), stage.cache().join(name));
    while !path.exists() {
        stage.shell.check()?;
        if start.elapsed() > KEPT_WITHIN {
            let remedy = "free 100 MB of that disk, or set TMPDIR to a directory on another";
            return Err(Failure::Broken(format!("{} was not kept; {remedy}", path.display())));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// What the server was asked between two moments, and what it sent.
fn cost(before: &Counts, after: &Counts) -> String {
    let others = |c: &Counts| c.put + c.delete + c.other;
    let kinds = [
        (after.list - before.list, "LIST"),
        (after.head - before.head, "HEAD"),
        (after.get - before.get, "GET"),
        (others(after) - others(before), "other"),
    ];
    let asked = kinds.iter().filter(|(count, _)| *count > 0);
    let asked = asked.map(|(count, kind)| format!("{count} {kind} ")).collect::<Vec<_>>().join("and ");
    let plural = if after.requests() - before.requests() == 1 { "" } else { "s" };
    let asked = if asked.is_empty() { "0 ".to_owned() } else { asked };
    let fetched = match after.bytes_sent - before.bytes_sent {
        0 => "nothing".to_owned(),
        bytes => format!("{:.1} MB", bytes as f64 / 1e6),
    };
    format!("{asked}request{plural}, {fetched} fetched")
}

/// Leaves the mount to the user, with the server running, and shows what their reads cost.
pub fn keep(stage: &Stage, interrupts: &Interrupts) -> Result<(), Failure> {
    stage.server.restart();
    let remote = stage.cache().join("remote");
    let remote = remote.display();
    let [.., third, _, last] = stage.names.as_slice() else { unreachable!("there are more artifacts") };
    stage.shell.remark("The server is back, and the mount stays. In another terminal, try:")?;
    stage.shell.say(format_args!(
        "M={remote}\n\
         ls -l $M\n\
         tar -tvf $M/{last}\n\
         time sha256sum $M/{third}    # twice\n\
         getfattr -d $M/{third}       # from Debian's attr"
    ))?;
    stage.shell.remark("Requests are shown here. Enter or Ctrl-C ends it.")?;
    let enter = enter_pressed();
    let (mut shown, mut last) = (stage.server.counts(), stage.server.counts());
    while enter.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
        // Ctrl-C is how this ends.
        if interrupts.check().is_err() {
            break;
        }
        let counts = stage.server.counts();
        let settled = counts.requests() == last.requests() && counts.bytes_sent == last.bytes_sent;
        if settled && counts.requests() > shown.requests() {
            stage.shell.measure(cost(&shown, &counts))?;
            shown = counts.clone();
        }
        last = counts;
    }
    Ok(())
}

/// Tells when there is a line on stdin. Its end is not one: a demo in the background goes on until a signal.
fn enter_pressed() -> Receiver<()> {
    let (tell, told) = channel();
    std::thread::spawn(move || match io::stdin().read_line(&mut String::new()) {
        Ok(length) if length > 0 => drop(tell.send(())),
        // Keeps the channel open.
        _ => loop {
            std::thread::park();
        },
    });
    told
}
