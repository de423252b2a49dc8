//! Acts that are done inside a guest, and its clock.
//! `Machines::perform` calls it; the words are `shell`'s.
//! It knows which act has which words, and nothing of when or why.

use super::probe::CLOCK_OFF_S;
use super::{Machines, shell};
use crate::drill::act::{Act, Rule};
use crate::drill::packets::ruleset;
use crate::guest::clock;
use crate::spec::NodeName;

impl Machines {
    pub(super) async fn in_guest(&self, act: &Act) -> Result<(), String> {
        let (node, script) = match act {
            Act::Down { node, process, graceful } => (node, shell::down(*process, *graceful)),
            Act::Start { node, process } => (node, shell::start(*process)),
            Act::Pause { node, process } => (node, shell::pause(*process)),
            Act::Continue { node, process } => (node, shell::resume(*process)),
            Act::Cut { node, rules } => (node, shell::cut(&self.rules(rules)?)),
            Act::Uncut { node } => (node, shell::uncut()),
            Act::Slow { node, delay_ms, jitter_ms, loss_percent } => (node, shell::slow(*delay_ms, *jitter_ms, *loss_percent)),
            Act::Unslow { node } => (node, shell::unslow()),
            Act::StallDisk { node } => (node, shell::stall_disk()),
            Act::UnstallDisk { node } => (node, shell::unstall_disk()),
            Act::Quota { node, mib } => (node, shell::quota(*mib)),
            Act::Wipe { node } => (node, shell::wipe()),
            Act::StartJoining { node } => (node, shell::start_joining()),
            other => return Err(format!("{other} is not done on a machine")),
        };
        self.on(node, format!("set -e\n{script}")).await.map(|_| ())
    }

    fn rules(&self, rules: &[Rule]) -> Result<String, String> {
        ruleset(rules, &|node| self.plan.node(node).map(|node| node.ip))
    }

    /// How far ahead a guest's clock is, in seconds, and how sure that is.
    pub(super) async fn clock_of(&self, node: &NodeName) -> Result<clock::ClockSeen, String> {
        let now = self.clock;
        clock::read(&*self.guest, node, &now, self.deadline()).await.map_err(|error| error.to_string())?
    }

    /// Moves a guest's clock until it is so far ahead. Once is enough, unless the answer was so long under way that it told
    /// little: then it is looked at again.
    async fn move_clock(&self, node: &NodeName, wanted_s: f64) -> Result<(), String> {
        let mut off = 0.0;
        for _ in 0..4 {
            let seen = self.clock_of(node).await?;
            off = seen.ahead_s - wanted_s;
            if off.abs() > clock::RIGHT_S {
                clock::shift(&*self.guest, node, -off, self.deadline()).await.map_err(|error| error.to_string())?;
            } else if seen.uncertain_s < clock::SHORT_TRIP_S {
                return Ok(());
            }
        }
        // A host this busy cannot tell better; what matters is judged by who looks next.
        if off.abs() < CLOCK_OFF_S { Ok(()) } else { Err(format!("{node}: its clock is {off:+.2} s off and cannot be set")) }
    }

    pub(super) async fn set_clock(&self, act: &Act) -> Result<(), String> {
        let (node, wanted) = match act {
            Act::SkewClock { node, seconds } => (node, f64::from(*seconds)),
            Act::SetClock { node } => (node, 0.0),
            other => return Err(format!("{other} is not about a clock")),
        };
        if wanted != 0.0 {
            self.on(node, format!("set -e\n{}", shell::before_skew())).await?;
        }
        self.move_clock(node, wanted).await?;
        if wanted == 0.0 {
            self.switched_on().remove(node);
            self.on(node, shell::after_skew()).await?;
        }
        Ok(())
    }
}
