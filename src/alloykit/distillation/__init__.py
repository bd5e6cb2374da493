"""Knowledge into a student: losses, teachers, stored teacher outputs."""
