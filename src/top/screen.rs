//! The terminal of `top`: taken whole, painted, and given back as it was found, whatever happens.
//! `cli top` hands it states as they come; keys end it.
//! It knows nothing of what it shows.

use super::frame::{foot, frame};
use super::state::State;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::{DefaultTerminal, Frame};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;

/// Between two looks at whether the reader of keys is still wanted.
const PATIENCE: Duration = Duration::from_millis(200);

/// What somebody did at the terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Touch {
    Quit,
    /// Another size.
    Repaint,
}

/// The terminal in its raw mode and on its other screen; dropped, it is as before. A panic gives it back first as well.
pub struct Screen {
    terminal: DefaultTerminal,
    reading: Arc<AtomicBool>,
    pub touches: mpsc::UnboundedReceiver<Touch>,
}

impl Screen {
    pub fn take() -> io::Result<Screen> {
        let terminal = ratatui::try_init().inspect_err(|_| ratatui::restore())?;
        let (sender, touches) = mpsc::unbounded_channel();
        let reading = Arc::new(AtomicBool::new(true));
        let wanted = reading.clone();
        // A read of a terminal cannot be cancelled, a look whether there is something to read ends by itself.
        std::thread::spawn(move || {
            while wanted.load(Ordering::SeqCst) {
                match event::poll(PATIENCE) {
                    Ok(false) => {}
                    Ok(true) => match event::read().map(|event| touch(&event)) {
                        Ok(Some(touch)) if sender.send(touch).is_err() => return,
                        Ok(_) => {}
                        Err(_) => break,
                    },
                    Err(_) => break,
                }
            }
        });
        Ok(Screen { terminal, reading, touches })
    }

    pub fn show(&mut self, state: &State) -> io::Result<()> {
        self.terminal.draw(|shown| paint(state, shown)).map(|_| ())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.reading.store(false, Ordering::SeqCst);
        ratatui::restore();
    }
}

/// Puts the picture of a state on what is shown, and how to leave below it.
pub fn paint(state: &State, shown: &mut Frame<'_>) {
    let (width, height) = (shown.area().width, shown.area().height);
    let picture = frame(state, width, height.saturating_sub(1));
    let mut below = foot(width);
    below.area.y = height.saturating_sub(1);
    shown.buffer_mut().merge(&picture);
    shown.buffer_mut().merge(&below);
}

fn touch(event: &Event) -> Option<Touch> {
    match event {
        Event::Resize(..) => Some(Touch::Repaint),
        Event::Key(key) if key.kind == KeyEventKind::Press => match key.code {
            KeyCode::Char('q') | KeyCode::Esc => Some(Touch::Quit),
            // In raw mode no signal comes of it.
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Some(Touch::Quit),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::crossterm::event::KeyEvent;

    #[test]
    fn q_escape_and_ctrl_c_quit_and_nothing_else_does() {
        let key = |code, modifiers| touch(&Event::Key(KeyEvent::new(code, modifiers)));
        assert_eq!(key(KeyCode::Char('q'), KeyModifiers::NONE), Some(Touch::Quit));
        assert_eq!(key(KeyCode::Esc, KeyModifiers::NONE), Some(Touch::Quit));
        assert_eq!(key(KeyCode::Char('c'), KeyModifiers::CONTROL), Some(Touch::Quit));
        assert_eq!(key(KeyCode::Char('c'), KeyModifiers::NONE), None);
        assert_eq!(touch(&Event::Resize(80, 24)), Some(Touch::Repaint));
        assert_eq!(touch(&Event::FocusLost), None);
    }
}
