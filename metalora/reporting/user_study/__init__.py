"""The user study of appendix C: questions from folders of images, a local web server, the analysis of its answers."""
