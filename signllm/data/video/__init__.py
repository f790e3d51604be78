"""What a video file shows: decoding, orientation, frame rates, tone mapping and transcoding."""
