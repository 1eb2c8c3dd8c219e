from d3d.detection.command import main

main()
